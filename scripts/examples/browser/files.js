/** The files of an export's folder, as a web server gives them. */

/** What is in the folder's text files, by name without ending. */
export async function fetchTexts(folder) {
  const files = {};
  for (const name of ["config", "generation_config", "tokenizer", "tokenizer_config"]) {
    files[name] = await (await get(new URL(`${name}.json`, folder))).json();
  }
  const template = await fetch(new URL("chat_template.jinja", folder));
  return { ...files, chat_template: template.ok ? await template.text() : "" };
}

/** A file's bytes; tells of each part that came: `onProgress(name, loaded, total)`, total 0 where it isn't known. */
export async function fetchBytes(url, onProgress) {
  const response = await get(url);
  const name = url.pathname.split("/").pop();
  // What is compressed on its way is longer than its header says.
  const total = response.headers.get("Content-Encoding") ? 0 : Number(response.headers.get("Content-Length"));
  // Where the size is known the parts go straight to their place, so that the file isn't in memory twice.
  const whole = total ? new Uint8Array(total) : undefined;
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (whole) whole.set(value, loaded);
    else parts.push(value);
    loaded += value.length;
    onProgress(name, loaded, total);
  }
  if (whole && loaded < total) throw new Error(`${name} broke off after ${loaded} of ${total} bytes.`);
  return whole ?? new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** Whether the server has a file. */
export async function isThere(url) {
  return (await fetch(url, { method: "HEAD" })).ok;
}

async function get(url) {
  const response = await fetch(url);
  if (!response.ok) {
    const cure = "Put an export's folder beside this page, and write its name under More.";
    throw new Error(`${url.pathname} can't be read (${response.status} ${response.statusText}). ${cure}`);
  }
  return response;
}
