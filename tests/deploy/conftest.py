import pytest
from phantom import phantom_engine, running_server


@pytest.fixture(scope="module")
def server_url():
    """A server on a free port, with the phantom predictor behind it."""
    from medsam2_ft.deploy.server import create_app

    with running_server(create_app(phantom_engine())) as url:
        yield url
