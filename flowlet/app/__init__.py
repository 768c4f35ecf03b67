"""`Flowlet`: the facade that joins registry, store, runs and machines. One module for each of its sides."""

from flowlet.app.flowlet import Flowlet as Flowlet
