// Reads [{name, text, layout}] as JSON from standard input, has Mermaid parse each text, and lay it out if asked to,
// and prints what it has understood as JSON: [{name, error, type, drawn, nodes, edges}], a node being
// {id, parent, region, label, classes}, an edge {source, target, label}.
// Packages are looked for in the current directory, which may be elsewhere.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "package.json"));
const { JSDOM } = require("jsdom");

// Mermaid wants a browser, which jsdom is, except that nothing in it has a size.
const { window } = new JSDOM("<!DOCTYPE html><body></body>", { pretendToBeVisual: true });
globalThis.window = window;
globalThis.document = window.document;
for (const name of ["Element", "SVGElement", "Node", "HTMLElement", "DOMParser", "XMLSerializer", "CSSStyleSheet"]) {
  globalThis[name] ??= window[name];
}
const width = (element) => 8 * (element.textContent || "").length + 10;
window.SVGElement.prototype.getBBox = function () {
  return { x: 0, y: 0, width: width(this), height: 20 };
};
window.SVGElement.prototype.getComputedTextLength = function () {
  return width(this);
};

const mermaid = (await import(pathToFileURL(require.resolve("mermaid")))).default;
mermaid.initialize({ startOnLoad: false });

// As Mermaid's own decodeEntities, and then as a browser.
const decode = (text) =>
  (text || "")
    .replace(/<br\s*\/?>/g, " ")
    .replace(/ﬂ°°(\d+)¶ß/g, (_, code) => String.fromCodePoint(Number(code)));

async function read({ name, text, layout }, number) {
  const { diagramType } = await mermaid.parse(text);
  const { nodes, edges } = (await mermaid.mermaidAPI.getDiagramFromText(text)).db.getData();
  const drawn = layout ? (await mermaid.render(`picture${number}`, text)).svg : "";
  const dividers = new Map(nodes.filter((n) => n.shape === "divider").map((n) => [n.id, n.parentId]));
  return {
    name,
    error: null,
    type: diagramType,
    drawn: JSDOM.fragment(drawn).textContent,
    nodes: nodes
      .filter((n) => !dividers.has(n.id))
      .map((n) => ({
        id: n.id,
        parent: dividers.get(n.parentId) ?? n.parentId ?? null,
        region: dividers.has(n.parentId),
        label: decode(n.label),
        classes: (n.cssClasses || "").split(" "),
      })),
    edges: edges.map((e) => ({ source: e.start, target: e.end, label: decode(e.label) })),
  };
}

const results = [];
for (const [number, asked] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  try {
    results.push(await read(asked, number));
  } catch (error) {
    results.push({ name: asked.name, error: String(error) });
  }
}
process.stdout.write(JSON.stringify(results), () => process.exit(0));
