// Runs the script of the docs page against a server, on as little of a browser as it needs, and prints what it would show.
// Arguments: the page's URL, the route to open and send ("POST /generate"), its body.
class Element {
  constructor(tag) { Object.assign(this, { tag, childNodes: [], attributes: {}, listeners: {} }); }
  append(...children) { this.childNodes.push(...children); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, listener) { (this.listeners[name] ||= []).push(listener); }
  get children() { return this.childNodes.filter((child) => child instanceof Element); }
  get textContent() { return this.childNodes.map((child) => (child instanceof Element ? child.textContent : String(child))).join(""); }
  set textContent(text) { this.childNodes = [text]; }
  scrollIntoView() {}
  *all() {
    yield this;
    for (const child of this.children) yield* child.all();
  }
}

const [url, wanted, body] = process.argv.slice(2);
const page = await (await fetch(url)).text();
const script = /<script>(.*?)<\/script>/s.exec(page)[1];
const top = new Element("body");
for (const [, id] of page.matchAll(/ id="([a-z]+)"/g)) top.append(Object.assign(new Element("div"), { id, value: "" }));

globalThis.document = {
  createElement: (tag) => new Element(tag),
  getElementById: (id) => [...top.all()].find((element) => element.id === id) || null,
  baseURI: url,
};
globalThis.location = { hash: "" };
Object.defineProperty(globalThis, "navigator", { value: {} });  // not a secure page: there is no clipboard
globalThis.getSelection = () => ({ selectAllChildren: () => {} });

const until = async (done) => {
  while (!done()) await new Promise((resolve) => setImmediate(resolve));
};

new Function(script)();
const main = document.getElementById("routes");
await until(() => main.attributes["aria-busy"] === "false");
const routes = [...main.all()].filter((element) => element.tag === "details");
const label = (route) => [0, 2].map((index) => route.children[0].children[index === 2 ? 1 : 0].textContent).join(" ");
for (const route of routes) {
  route.open = true;
  route.listeners.toggle.forEach((listener) => listener());
}
const chosen = routes.find((route) => label(route) === wanted);
const one = (tag, text) => [...chosen.all()].find((element) => element.tag === tag && (!text || element.textContent === text));
const cells = [...chosen.all()].filter((element) => element.tag === "tr").map((row) => row.children.map((cell) => cell.textContent));
const field = one("textarea");
const example = field.value;
document.getElementById("key").value = "it's secret";
field.value = body;
field.listeners.input.forEach((listener) => listener());
const [output, command] = [...chosen.all()].filter((element) => element.tag === "pre");
const send = one("button", "Send");
one("button", "Copy").listeners.click[0]();
await send.listeners.click[0]();
const status = [...chosen.all()].filter((element) => element.tag === "p").at(-1).textContent;
console.log(JSON.stringify({
  routes: routes.map(label), cells, example, curl: command.textContent, output: output.textContent, status, disabled: send.disabled,
  about: document.getElementById("about").textContent, groups: document.getElementById("groups").textContent,
}));
