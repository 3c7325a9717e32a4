"""Line searches: how far to go along a direction."""

from jaxopt_keras.rules.line_search.search import ZoomSearch as ZoomSearch
from jaxopt_keras.rules.line_search.zoom import Zoom as Zoom
