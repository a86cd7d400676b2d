//! `GET /v1/docs`: the description of the API as a page. It has no scripts, and asks no other host for anything.

use std::{fmt::Write, sync::LazyLock};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::openapi::{DOCS_PATH, PATH, document};

/// The page
#[utoipa::path(get, path = DOCS_PATH, tag = "daemon", responses((status = 200, description = "This description for people", content_type = "text/html", body = String)))]
pub(super) async fn docs() -> Response {
    static PAGE: LazyLock<String> = LazyLock::new(|| page(document()));
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE.as_str()).into_response()
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

fn page(document: &Value) -> String {
    let mut html = String::from(HEAD);
    let info = &document["info"];
    add(
        &mut html,
        format_args!(
            "<h1>{} {}</h1><p>{}</p><p><a href=\"{PATH}\">openapi.json</a></p>",
            text(&info["title"]),
            text(&info["version"]),
            text(&info["description"])
        ),
    );
    let empty = Vec::new();
    let tags = document["tags"].as_array().unwrap_or(&empty);
    html.push_str("<nav>");
    for tag in tags {
        let name = text(&tag["name"]);
        add(&mut html, format_args!("<a href=\"#{name}\">{name}</a> "));
    }
    html.push_str("<a href=\"#bodies\">bodies</a></nav>");
    for tag in tags {
        let name = text(&tag["name"]);
        add(
            &mut html,
            format_args!(
                "<h2 id=\"{name}\">{name}</h2><p>{}</p>",
                text(&tag["description"])
            ),
        );
        for (path, method, operation) in operations(document) {
            if operation["tags"][0] == tag["name"] {
                add_operation(&mut html, path, method, operation);
            }
        }
    }
    html.push_str("<h2 id=\"bodies\">bodies</h2>");
    for (name, schema) in document["components"]["schemas"]
        .as_object()
        .into_iter()
        .flatten()
    {
        add_schema(&mut html, name, schema);
    }
    html.push_str("</main></html>\n");
    html
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>Sluice API</title><style>\
:root{color-scheme:light dark;--line:#8884;--soft:#8882}\
body{font:15px/1.5 system-ui,sans-serif;margin:0}main{max-width:60rem;margin:auto;padding:1rem}\
details{border:1px solid var(--line);border-radius:6px;margin:.5rem 0;padding:.3rem .8rem}\
summary{cursor:pointer}code,b.m{font-family:ui-monospace,monospace}b.m{display:inline-block;width:5rem}\
nav a{margin-right:1rem}table{border-collapse:collapse;margin:.4rem 0;width:100%}\
td,th{border-top:1px solid var(--line);padding:.2rem .6rem;text-align:left;vertical-align:top}\
code{background:var(--soft);border-radius:3px;padding:0 .2rem}</style><main>";

/// Every operation of a description: path, method and what is said of it.
pub(super) fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let methods = item.as_object().into_iter().flatten();
        methods.map(|(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

fn add_operation(html: &mut String, path: &str, method: &str, operation: &Value) {
    add(
        html,
        format_args!(
            "<details><summary><b class=\"m\">{}</b><code>{path}</code> {}</summary><p>{}</p>",
            method.to_uppercase(),
            text(&operation["summary"]),
            text(&operation["description"])
        ),
    );
    if let Some(parameters) = operation["parameters"].as_array() {
        html.push_str("<table><tr><th>parameter<th>in<th>type<th>meaning</tr>");
        for parameter in parameters {
            add(
                html,
                format_args!(
                    "<tr><td><code>{}</code><td>{}<td>{}<td>{}</tr>",
                    text(&parameter["name"]),
                    text(&parameter["in"]),
                    kind(&parameter["schema"]),
                    text(&parameter["description"])
                ),
            );
        }
        html.push_str("</table>");
    }
    if let Some(content) = operation["requestBody"]["content"].as_object() {
        for (media, body) in content {
            add(
                html,
                format_args!("<p>Takes {media}: {}</p>", kind(&body["schema"])),
            );
        }
    }
    html.push_str("<table><tr><th>status<th>body<th>when</tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let bodies = response["content"].as_object().into_iter().flatten();
        let bodies: Vec<String> = bodies
            .map(|(media, body)| format!("{} <small>{media}</small>", kind(&body["schema"])))
            .collect();
        add(
            html,
            format_args!(
                "<tr><td>{status}<td>{}<td>{}</tr>",
                bodies.join("<br>"),
                text(&response["description"])
            ),
        );
    }
    html.push_str("</table></details>");
}

fn add_schema(html: &mut String, name: &str, schema: &Value) {
    add(
        html,
        format_args!(
            "<details id=\"{name}\"><summary><code>{name}</code></summary><p>{}</p>",
            text(&schema["description"])
        ),
    );
    add_fields(html, schema);
    html.push_str("</details>");
}

fn add_fields(html: &mut String, schema: &Value) {
    for all in ["allOf", "oneOf", "anyOf"] {
        for part in schema[all].as_array().into_iter().flatten() {
            add(
                html,
                format_args!("<p>{} {}</p>", kind(part), text(&part["description"])),
            );
            add_fields(html, part);
        }
    }
    if schema["enum"].is_array() {
        add(html, format_args!("<p>{}</p>", kind(schema)));
    }
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    html.push_str("<table><tr><th>field<th>type<th>meaning</tr>");
    for (field, schema) in properties {
        add(
            html,
            format_args!(
                "<tr><td><code>{field}</code><td>{}<td>{}</tr>",
                kind(schema),
                text(&schema["description"])
            ),
        );
    }
    html.push_str("</table>");
}

/// What a value is, in a few words; names of other bodies are links.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next())
    {
        let name = escape(name);
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("<code>{}</code>", text(word)))
            .collect();
        return words.join(", ");
    }
    for of in ["oneOf", "anyOf", "allOf"] {
        if let Some(kinds) = schema[of].as_array() {
            return kinds.iter().map(kind).collect::<Vec<_>>().join(" or ");
        }
    }
    if schema["type"] == "array" {
        return format!("list of {}", kind(&schema["items"]));
    }
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(text).collect::<Vec<_>>().join(" or "),
        one => text(one),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text),
        Value::Null => String::new(),
        other => escape(&other.to_string()),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn add(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    _ = html.write_fmt(text);
}
