//! The description of the API, made from the routes themselves: paths, bodies and every status.

use std::sync::LazyLock;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{Problem, guard, page, problem, routes};

/// Where the description is.
pub(super) const PATH: &str = "/v1/openapi.json";
/// Where the page is that shows it.
pub(super) const DOCS_PATH: &str = "/v1/docs";

/// As JSON. Does not depend on config or state.
pub fn document() -> &'static Value {
    &DOCUMENT
}

/// Whether a token is needed for a path: not for probes, nor for what every copy of the program says.
pub(super) fn is_public(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | PATH | DOCS_PATH | page::PATH)
}

/// This description
#[utoipa::path(get, path = PATH, tag = "daemon", responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Value)))]
pub(super) async fn openapi() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, TEXT.as_str()).into_response()
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let (_, described) = routes().split_for_parts();
    let mut document = serde_json::to_value(described)
        .unwrap_or_else(|error| unreachable!("a description is JSON: {error}"));
    complete(&mut document);
    document
});

/// What holds for the whole API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "The runtime API of a load balancer. Everything on its Unix socket may be done by who may open that; \
                       by TCP, a token of role `read` may GET, one of role `operate` everything. \
                       Every error is a problem document (RFC 9457)."
    ),
    components(schemas(Problem)),
    tags(
        (name = "state", description = "How things are"),
        (name = "limits", description = "What source prefixes may send"),
        (name = "sources", description = "Who is denied, and who is let in"),
        (name = "rules", description = "Which packets are dropped, limited or let pass"),
        (name = "detection", description = "Attacks, what is done about them, and who sends most"),
        (name = "drains", description = "Backends, VIPs and PoPs that get no new flows"),
        (name = "events", description = "What changes, as it happens"),
        (name = "daemon", description = "The daemon itself"),
    )
)]
pub(super) struct Frame;

/// Adds to each operation what no handler decides: errors of tokens and of bodies. Every error is a problem.
fn complete(document: &mut Value) {
    document["components"]["securitySchemes"] =
        json!({ "token": { "type": "http", "scheme": "bearer" } });
    document["security"] = json!([{ "token": [] }]);
    let Some(Value::Object(paths)) = document.get_mut("paths") else {
        return;
    };
    // What axum calls the rest of a path has no name of its own there.
    let described = std::mem::take(paths);
    for (path, mut item) in described {
        let operations = item.as_object_mut().into_iter().flatten();
        for (method, operation) in operations {
            complete_operation(&path, method, operation);
        }
        paths.insert(path.replace("{*", "{"), item);
    }
}

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let mut shared: Vec<(u16, String)> = Vec::new();
    if is_public(path) {
        operation["security"] = json!([]);
    } else {
        shared.push((401, "No token, or none that is valid (TCP only)".into()));
        if method != "get" {
            shared.push((403, "The token may only read (TCP only)".into()));
        }
    }
    if operation.get("requestBody").is_some() {
        shared.push((
            400,
            "The body is not what it should be, or ends early".into(),
        ));
        shared.push((
            408,
            format!(
                "The body was not here after {} s",
                guard::BODY_TIME.as_secs()
            ),
        ));
        shared.push((413, "The body is too large".into()));
        shared.push((415, "The body is not JSON".into()));
    }
    let Some(Value::Object(responses)) = operation.get_mut("responses") else {
        return;
    };
    for (status, description) in shared {
        let status = status.to_string();
        if !responses.contains_key(&status) {
            responses.insert(status, json!({ "description": description }));
        }
    }
    let is_error = |status: &str| status.starts_with(['4', '5']);
    let errors = responses.iter_mut().filter(|(status, _)| is_error(status));
    for (_, response) in errors {
        response["content"] = json!({
            problem::CONTENT_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } }
        });
    }
    let mut sorted: Vec<_> = std::mem::take(responses).into_iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    *responses = sorted.into_iter().collect::<Map<_, _>>();
}
