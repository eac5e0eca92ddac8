// Talks to the server that served this page: the same OpenAI-compatible API that any other client uses.

export class ApiError extends Error {
  constructor(status, message, code, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

function headers(key) {
  const value = { "Content-Type": "application/json" };
  if (key) value.Authorization = `Bearer ${key}`;
  return value;
}

async function request(path, key, body, signal) {
  let response;
  try {
    const options = body === undefined ? { headers: headers(key), signal } : { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) {
    let error = {};
    try {
      error = (await response.json()).error ?? {};
    } catch {
      // Not our JSON: a proxy's own page. The status says enough.
    }
    const message = error.message || `The server answered with status ${response.status}.`;
    throw new ApiError(response.status, message, error.code, Number(response.headers.get("Retry-After")) || undefined);
  }
  return response;
}

// Text chunks in, parsed `data:` events out. Cuts may fall anywhere, even inside a character or a line end.
export async function* readEvents(chunks) {
  const decoder = new TextDecoder();
  let buffer = "";
  for await (const chunk of chunks) {
    buffer += decoder.decode(chunk, { stream: true });
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
  throw new ApiError(0, "The connection was lost before the answer was complete.");
}

async function* readBody(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection was lost before the answer was complete.");
  } finally {
    reader.releaseLock();
  }
}

export async function* streamChat(body, key, signal) {
  const response = await request("/v1/chat/completions", key, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  for await (const event of readEvents(readBody(response.body))) {
    if (event.error) throw new ApiError(event.error.code === "overloaded" ? 429 : 500, event.error.message);
    yield event;
  }
}

export async function fetchModel(key) {
  return (await (await request("/v1/models", key)).json()).data[0];
}

// Markdown -> HTML that the server has made safe.
export async function renderMarkdown(texts, writing, key) {
  return (await (await request("/ui/render", key, { texts, writing })).json()).html;
}

export async function fetchRuns(key) {
  return (await (await request("/training/runs", key)).json()).runs;
}

// What a run's log has from byte `after` on; `file` tells whether it is still the same log.
export async function fetchRun(name, after, file, key) {
  return (await request(`/training/runs/${encodeURIComponent(name)}?after=${after}&file=${file}`, key)).json();
}

// {ready, message}: whether there is a model to chat with.
export async function fetchHealth() {
  const response = await fetch("/health");
  const { message } = await response.json();
  return { ready: response.ok, message };
}
