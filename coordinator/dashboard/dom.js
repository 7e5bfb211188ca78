// Elements, made and kept in step with data. Text goes in as text, never as markup; there is no other way in.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else attribute(element, name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an element; a function among the attributes listens to the event of that name. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Makes an element of a picture. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Sets an attribute, or takes it away where there is no value. */
export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Sets an element's text, if it is another. */
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/**
 * Keeps a container's children in step with a list: `make(item)` returns `{ element, update(item) }`, which is kept as long as an
 * item of that key is there. So nobody loses the focus because a figure has changed.
 */
export function keyed(container, key, make) {
  const known = new Map();
  return (items) => {
    const wanted = new Set();
    let at = container.firstChild;
    for (const item of items) {
      const name = key(item);
      wanted.add(name);
      let view = known.get(name);
      if (!view) {
        view = make(item);
        known.set(name, view);
      }
      view.update(item);
      if (view.element === at) at = at.nextSibling;
      else container.insertBefore(view.element, at);
    }
    for (const [name, view] of known) {
      if (wanted.has(name)) continue;
      view.element.remove();
      known.delete(name);
    }
  };
}
