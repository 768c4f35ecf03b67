"""`Diagram`: a drawn definition, as text and, where Graphviz is installed, as a picture in notebooks.

Law: the text is made once; a picture is made when somebody asks for it. What a notebook asks for never raises.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from flowlet.diagram.program import DotFailed, run_dot


class Diagram(msgspec.Struct, frozen=True):
    """A drawn definition. Its `str` is the Mermaid text.

    Attributes:
        name: the definition's.
        mermaid: Mermaid text, which GitHub, GitLab and many editors show as a picture.
        dot: Graphviz DOT text.

    Example:
        >>> from flowlet.diagram import diagram
        >>> steps = [{"name": "reserve", "compensation": "free"}, {"name": "charge"}]
        >>> picture = diagram({"kind": "saga", "name": "checkout", "inputs": ["order"], "steps": steps})
        >>> picture
        <diagram of checkout>
        >>> print(picture, end="")
        flowchart TB
            begin(["checkout(order)"])
            reserve["reserve"]
            charge["charge"]
            free("free")
            begin --> reserve
            reserve --> charge
            reserve -.->|"undone by"| free
            classDef compensation stroke-dasharray:4
            class free compensation
    """

    name: str
    mermaid: str
    dot: str

    def svg(self, *, program: str = "dot", timeout: float = 30.0) -> str:
        """Return the picture as SVG, made by Graphviz.

        Args:
            program: the name or path of ``dot``, or of another program of Graphviz.
            timeout: seconds it may take.

        Raises:
            DotFailed: the program is not installed, failed, or did not end in time.
        """
        return run_dot(self.dot, program, timeout)

    def __str__(self) -> str:
        return self.mermaid

    def __repr__(self) -> str:
        return f"<diagram of {self.name}>"

    # What Jupyter asks for: https://ipython.readthedocs.io/en/stable/config/integrating.html ------
    def _repr_svg_(self) -> str | None:
        try:
            return self.svg()
        except DotFailed:
            return None

    def _repr_markdown_(self) -> str | None:
        """Fall back to Mermaid text, which JupyterLab shows as a picture and others as text."""
        return None if self._repr_svg_() is not None else f"```mermaid\n{self.mermaid}```\n"

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, str]:
        shown = {"text/plain": self.mermaid}
        svg = self._repr_svg_()
        if svg is not None:
            shown["image/svg+xml"] = svg
        else:
            shown["text/markdown"] = f"```mermaid\n{self.mermaid}```\n"
        return {
            kind: text
            for kind, text in shown.items()
            if (include is None or kind in include) and (exclude is None or kind not in exclude)
        }
