//! The description and the API agree: every answer that it names is given, with the body that it promises.

use std::collections::BTreeSet;

use serde_json::Map;

use super::{
    super::{docs::operations, document},
    remote::{Mutual, Remote, request},
    *,
};
use crate::{
    book::Precondition,
    detect::mitigation::Mitigation,
    rules::{Origin, RuleSpec},
};

/// Method, path as described, and status.
type Seen = BTreeSet<(String, String, u16)>;

/// Notes an answer, and sees that it is described: its status, media type and body.
fn note(seen: &mut Seen, method: &Method, path: &str, answer: &Answer) {
    let method = method.as_str().to_lowercase();
    let response = &document()["paths"][path][&method]["responses"][answer.status.to_string()];
    assert!(
        response.is_object(),
        "{method} {path} answers {}: {}",
        answer.status,
        answer.text()
    );
    match response["content"].as_object() {
        None => assert_eq!(answer.text(), "", "{method} {path} {}", answer.status),
        Some(content) => {
            let (kind, body) = content.iter().next().unwrap();
            assert!(
                answer.kind.starts_with(kind.as_str()),
                "{} {kind}",
                answer.kind
            );
            if kind.ends_with("json") {
                let place = format!("{method} {path} {}", answer.status);
                check(&answer.json(), &body["schema"], &place);
            }
        }
    }
    seen.insert((method, path.to_owned(), answer.status));
}

/// A schema, or the one that it names; one that is made of others has all that these have.
fn resolved(schema: &Value) -> Value {
    if let Some(parts) = schema["allOf"].as_array() {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for part in parts.iter().map(resolved) {
            properties.extend(part["properties"].as_object().unwrap().clone());
            required.extend(part["required"].as_array().into_iter().flatten().cloned());
        }
        return json!({ "type": "object", "properties": properties, "required": required });
    }
    let Some(reference) = schema["$ref"].as_str() else {
        return schema.clone();
    };
    let name = reference.rsplit('/').next().unwrap();
    let schema = &document()["components"]["schemas"][name];
    assert!(schema.is_object(), "no schema {name}");
    resolved(schema)
}

/// Whether a value is as a schema says: types, and no fields that are missing or unknown.
fn check(value: &Value, schema: &Value, place: &str) {
    let schema = resolved(schema);
    if let Some(kinds) = schema["oneOf"].as_array() {
        let fits = |kind: &&Value| {
            let kind = resolved(kind);
            let mut required = kind["required"].as_array().into_iter().flatten();
            (kind["type"] == "null") == value.is_null()
                && required.all(|field| value.get(field.as_str().unwrap()).is_some())
        };
        let kind = kinds.iter().find(fits);
        let kind = kind.unwrap_or_else(|| panic!("{place}: {value} is none of {kinds:?}"));
        return check(value, kind, place);
    }
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{place}: {value} of {words:?}");
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allowed = match &schema["type"] {
        Value::Array(kinds) => kinds.contains(&json!(kind)),
        Value::Null => true,
        one => *one == kind,
    };
    assert!(allowed, "{place}: {value} is not {}", schema["type"]);
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(item, &schema["items"], &format!("{place}[{index}]"));
    }
    let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    else {
        return;
    };
    for (field, value) in fields {
        let schema = properties
            .get(field)
            .unwrap_or_else(|| panic!("{place}: `{field}` is not described"));
        check(value, schema, &format!("{place}.{field}"));
    }
    for field in schema["required"].as_array().into_iter().flatten() {
        assert!(
            fields.contains_key(field.as_str().unwrap()),
            "{place}: no {field}"
        );
    }
}

const DRAIN: &str = "/v1/drains/{kind}/{name}";
const BACKEND: &str = "/v1/drains/backend/web/10.0.0.1";
const ONE: &str = "/v1/limits/{id}";
const ONE_RULE: &str = "/v1/rules/{id}";
const PREVIEW: &str = "/v1/rules/preview";
const RULE: &str = r#""ttl 7 -> drop""#;
/// For the packets of that one.
const PASSING_RULE: &str = r#""ttl 7 -> pass""#;
const OTHER_RULE: &str = r#""ttl 8 -> drop""#;

/// Of each kind: the list, one entry as described, two that are set, one that is not, and one of the config.
const SOURCES: [[&str; 6]; 2] = [
    [
        "/v1/deny",
        "/v1/deny/{id}",
        "/v1/deny/one",
        "/v1/deny/two",
        "/v1/deny/nine",
        "/v1/deny/fixed",
    ],
    [
        "/v1/allow",
        "/v1/allow/{id}",
        "/v1/allow/one",
        "/v1/allow/two",
        "/v1/allow/nine",
        "/v1/allow/fixed",
    ],
];
const SET: &str = r#"{ "name": "one", "prefixes": ["192.0.2.0/24"] }"#;
const LARGER_SET: &str = r#"{ "name": "one", "prefixes": ["192.0.2.0/23"] }"#;
const OTHER_SET: &str = r#"{ "name": "two", "list": "192.0.2.0/24\n" }"#;
const THIRD_SET: &str = r#"{ "name": "three", "prefixes": ["192.0.2.0/24", "198.51.100.0/24"] }"#;

const REVERT: &str = "/v1/mitigations/{id}/revert";
const ALLOW: &str = "/v1/mitigations/{id}/allow";

fn mitigation(id: u64) -> Mitigation {
    serde_json::from_value(json!({
        "id": id, "vip": null, "class": "udp", "measure": "upstream", "evidence": null,
        "rates": { "pps": 9, "bps": 9 }, "trigger": { "pps": 1, "bps": 1 }, "created_ms": 0,
        "phase": { "shadow": { "since_ms": 0 } }, "returns": 0, "matched_packets": 0
    }))
    .unwrap()
}

#[tokio::test]
async fn every_described_answer_is_given_through_tls() {
    let mut seen = Seen::new();
    let remote = Remote::start(Mutual::No, Caps::default(), Duration::from_millis(200)).await;
    let world = &remote.world;
    let post_limit = |body: &str| (Method::POST, "/v1/limits", "/v1/limits", body.to_owned());
    let put_limit = |path, body: &str| (Method::PUT, ONE, path, body.to_owned());
    let other = LIMIT.replace("udp", "syn");
    let post_rule = |body: &str| (Method::POST, "/v1/rules", "/v1/rules", body.to_owned());
    let put_rule = |path, body: &str| (Method::PUT, ONE_RULE, path, body.to_owned());
    let preview_rule = |body: &str| (Method::POST, PREVIEW, PREVIEW, body.to_owned());
    let pieces = (0..9).map(|n| format!("payload {n} = 0x01 -> drop"));
    let pieces = json!(pieces.collect::<Vec<_>>()).to_string();
    let get = |path| (Method::GET, path, path, String::new());
    let drain = |method: &Method, path| (method.clone(), DRAIN, path, String::new());
    let reload = || (Method::POST, "/v1/reload", "/v1/reload", String::new());
    let (put, delete) = (Method::PUT, Method::DELETE);

    let mut calls = vec![
        post_limit(LIMIT),
        post_limit(LIMIT),
        post_limit(&other),
        post_limit("["),
        post_limit("{}"),
        post_limit(&format!("[{LIMIT}]")),
        post_limit(&" ".repeat((64 << 20) + 1)),
        put_limit("/v1/limits/1", LIMIT),
        put_limit("/v1/limits/1", &other),
        put_limit("/v1/limits/9", LIMIT),
        put_limit("/v1/limits/1", "["),
        put_limit("/v1/limits/1", "{}"),
        put_limit("/v1/limits/1", &" ".repeat(2 << 20)),
        (Method::GET, ONE, "/v1/limits/1", String::new()),
        (Method::GET, ONE, "/v1/limits/9", String::new()),
        post_rule(RULE),
        post_rule(RULE),
        post_rule(OTHER_RULE),
        post_rule("["),
        post_rule("{}"),
        post_rule(&pieces),
        post_rule(&format!("[{RULE}]")),
        post_rule(&" ".repeat(2 << 20)),
        put_rule("/v1/rules/1", RULE),
        put_rule("/v1/rules/1", OTHER_RULE),
        put_rule("/v1/rules/9", RULE),
        put_rule("/v1/rules/1", "["),
        put_rule("/v1/rules/1", "{}"),
        put_rule("/v1/rules/1", &" ".repeat(2 << 20)),
        (Method::GET, ONE_RULE, "/v1/rules/1", String::new()),
        (Method::GET, ONE_RULE, "/v1/rules/9", String::new()),
        preview_rule(RULE),
        preview_rule("["),
        preview_rule("{}"),
        preview_rule(&" ".repeat(2 << 20)),
    ];
    for [all, one, first, _, none, _] in SOURCES {
        let post = |body: &str| (Method::POST, all, all, body.to_owned());
        let put = |path, body: &str| (Method::PUT, one, path, body.to_owned());
        calls.extend([
            post(SET),
            post(SET),
            post(OTHER_SET),
            post("["),
            post("{}"),
            post(&" ".repeat((64 << 20) + 1)),
            put(first, SET),
            put(first, OTHER_SET),
            put(none, SET),
            put(first, "["),
            put(first, "{}"),
            put(first, &" ".repeat((64 << 20) + 1)),
            (Method::GET, one, first, String::new()),
            (Method::GET, one, none, String::new()),
            (Method::GET, all, all, String::new()),
        ]);
    }
    calls.extend(
        [
            "/v1/status",
            "/v1/plan",
            "/v1/vips",
            "/v1/backends",
            "/v1/flows",
            "/v1/drops",
            "/v1/peers",
            "/v1/limits",
            "/v1/rules",
            "/metrics",
            "/healthz",
            "/readyz",
            "/",
            "/v1/openapi.json",
            "/v1/docs",
        ]
        .map(get),
    );
    calls.extend(
        ["/v1/limits/1", "/v1/limits/9"].map(|path| (delete.clone(), ONE, path, String::new())),
    );
    let removed = ["/v1/rules/1", "/v1/rules/9"];
    calls.extend(removed.map(|path| (delete.clone(), ONE_RULE, path, String::new())));
    for [_, one, first, _, none, _] in SOURCES {
        let removed = [first, none];
        calls.extend(removed.map(|path| (delete.clone(), one, path, String::new())));
    }
    for method in [&put, &delete] {
        calls.push(drain(method, BACKEND));
        calls.push(drain(method, "/v1/drains/backend/web/10.0.0.9"));
        calls.push(drain(method, "/v1/drains/backend/web"));
        calls.push(drain(method, "/v1/drains/vip/site"));
    }
    calls.push(reload());
    calls.extend(
        [
            ("/v1/vips", "/v1/vips?nosuch=1"),
            ("/v1/backends", "/v1/backends?limit=0"),
            ("/v1/flows", "/v1/flows?after=x"),
            ("/v1/drops", "/v1/drops?limit=1&limit=2"),
            ("/v1/peers", "/v1/peers?limit=0"),
            ("/v1/limits", "/v1/limits?class=tcp"),
            ("/v1/rules", "/v1/rules?origin=x"),
            ("/v1/deny", "/v1/deny?covers=x"),
            ("/v1/allow", "/v1/allow?covers=x"),
        ]
        .map(|(described, path)| (Method::GET, described, path, String::new())),
    );
    world
        .handle
        .detection()
        .lock()
        .detector
        .adopt((1..=3).map(mitigation));
    let post = |described, path| (Method::POST, described, path, String::new());
    calls.extend(["/v1/mitigations", "/v1/talkers"].map(get));
    calls.extend([
        (
            Method::GET,
            "/v1/mitigations",
            "/v1/mitigations?limit=0",
            String::new(),
        ),
        (
            Method::GET,
            "/v1/talkers",
            "/v1/talkers?by=x",
            String::new(),
        ),
        (
            Method::GET,
            "/v1/talkers",
            "/v1/talkers?vip=x",
            String::new(),
        ),
        post(REVERT, "/v1/mitigations/1/revert"),
        post(REVERT, "/v1/mitigations/9/revert"),
        post(ALLOW, "/v1/mitigations/1/allow"),
        post(ALLOW, "/v1/mitigations/2/allow"),
        post(ALLOW, "/v1/mitigations/9/allow"),
    ]);
    for (method, described, path, body) in calls {
        let answer = remote
            .send(&remote.operate, method.clone(), path, body)
            .await;
        note(&mut seen, &method, described, &answer);
    }

    // Each operation without a token, and each change with one that may only read.
    for (path, method, operation) in operations(document()) {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let called = path
            .replace("{id}", "1")
            .replace("{kind}", "backend")
            .replace("{name}", "x");
        if operation["security"] == json!([]) {
            continue;
        }
        let answer = remote.send("", method.clone(), &called, "").await;
        note(&mut seen, &method, path, &answer);
        if method != Method::GET {
            let answer = remote.send(&remote.read, method.clone(), &called, "").await;
            note(&mut seen, &method, path, &answer);
        }
    }

    // Rules of detection are not the operator's to remove.
    let mut spec: RuleSpec = "ttl 9 -> drop".parse().unwrap();
    spec.origin = Origin::Detection;
    let detected = world.handle.set_rule(spec, Precondition::None).await;
    let path = format!("/v1/rules/{}", detected.unwrap().0.record.id);
    let answer = remote
        .send(&remote.operate, delete.clone(), &path, "")
        .await;
    note(&mut seen, &delete, ONE_RULE, &answer);

    // Nor are sets of the config.
    let mut config = std::fs::read_to_string(world.config_file()).unwrap();
    config += "[[deny]]\nname = \"fixed\"\nprefixes = [\"203.0.113.0/24\"]\n";
    config += "[[allow]]\nname = \"fixed\"\nprefixes = [\"203.0.113.7\"]\n";
    std::fs::write(world.config_file(), config).unwrap();
    let answer = remote
        .send(&remote.operate, Method::POST, "/v1/reload", "")
        .await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    for [_, one, .., fixed] in SOURCES {
        let answer = remote
            .send(&remote.operate, delete.clone(), fixed, "")
            .await;
        note(&mut seen, &delete, one, &answer);
    }

    world.plane.make_room_for(Some(0));
    for [all, ..] in SOURCES {
        let answer = remote
            .send(&remote.operate, Method::POST, all, THIRD_SET)
            .await;
        note(&mut seen, &Method::POST, all, &answer);
    }
    world.plane.make_room_for(None);

    // Conditions that do not hold, that make no sense, and a disk that fails.
    let answer = remote
        .send(&remote.operate, Method::POST, "/v1/limits", LIMIT)
        .await;
    let one = format!("/v1/limits/{}", answer.json()["id"]);
    let answer = remote
        .send(&remote.operate, Method::POST, "/v1/rules", RULE)
        .await;
    let one_rule = format!("/v1/rules/{}", answer.json()["id"]);
    let slower = LIMIT.replace("1000", "7");
    let mut changes = vec![
        (Method::POST, "/v1/limits", "/v1/limits", slower.as_str()),
        (put.clone(), ONE, one.as_str(), slower.as_str()),
        (delete.clone(), ONE, one.as_str(), ""),
        (Method::POST, "/v1/rules", "/v1/rules", RULE),
        (put.clone(), ONE_RULE, one_rule.as_str(), PASSING_RULE),
        (delete.clone(), ONE_RULE, one_rule.as_str(), ""),
    ];
    for [all, one, first, ..] in SOURCES {
        let set = remote.send(&remote.operate, Method::POST, all, SET).await;
        assert_eq!(set.status, 201, "{}", set.text());
        changes.extend([
            (Method::POST, all, all, SET),
            (put.clone(), one, first, LARGER_SET),
            (delete.clone(), one, first, ""),
        ]);
    }
    for (method, described, path, body) in &changes {
        for tag in ["\"99-99\"", "nonsense"] {
            let request = request(&remote.operate, method.clone(), path);
            let request = request.header(header::IF_MATCH, tag);
            let answer = exchange(remote.connect().await, request, (*body).to_owned()).await;
            note(&mut seen, method, described, &answer);
        }
    }
    for (described, path) in [
        ("/v1/reload", "/v1/reload"),
        (REVERT, "/v1/mitigations/1/revert"),
        (ALLOW, "/v1/mitigations/1/allow"),
    ] {
        let request = request(&remote.operate, Method::POST, path);
        let request = request.header(header::IF_MATCH, "*");
        let answer = exchange(remote.connect().await, request, "").await;
        note(&mut seen, &Method::POST, described, &answer);
    }
    let answer = remote.send(&remote.operate, put.clone(), BACKEND, "").await;
    assert_eq!(answer.status, 204);
    let revert = remote.send(
        &remote.operate,
        Method::POST,
        "/v1/mitigations/2/revert",
        "",
    );
    assert_eq!(revert.await.status, 204);
    remote.disk.break_down(true);
    let other_backend = BACKEND.replace("0.1", "0.2");
    for (method, described, path, body) in changes.into_iter().chain([
        (put.clone(), DRAIN, other_backend.as_str(), ""),
        (delete.clone(), DRAIN, BACKEND, ""),
        (Method::POST, REVERT, "/v1/mitigations/3/revert", ""),
        (Method::POST, ALLOW, "/v1/mitigations/2/allow", ""),
    ]) {
        let body = body.to_owned();
        let answer = remote
            .send(&remote.operate, method.clone(), path, body)
            .await;
        note(&mut seen, &method, described, &answer);
    }
    remote.disk.break_down(false);
    let is_reverted = |id| {
        let detector = &world.handle.detection().lock().detector;
        detector.mitigation(id).unwrap().is_reverted()
    };
    assert_eq!(
        [2, 3].map(is_reverted),
        [true, false],
        "nothing was changed"
    );

    // Bodies of the wrong type, and bodies that do not come.
    for (method, described, path) in [
        (Method::POST, "/v1/limits", "/v1/limits"),
        (put.clone(), ONE, "/v1/limits/1"),
        (Method::POST, "/v1/rules", "/v1/rules"),
        (put.clone(), ONE_RULE, "/v1/rules/1"),
        (Method::POST, PREVIEW, PREVIEW),
        (Method::POST, "/v1/deny", "/v1/deny"),
        (put.clone(), "/v1/deny/{id}", "/v1/deny/1"),
        (Method::POST, "/v1/allow", "/v1/allow"),
        (put.clone(), "/v1/allow/{id}", "/v1/allow/1"),
    ] {
        let request = || request(&remote.operate, method.clone(), path);
        let typed = request().header(header::CONTENT_TYPE, "text/plain");
        let answer = exchange(remote.connect().await, typed, LIMIT).await;
        note(&mut seen, &method, described, &answer);
        let answer = hostile::unfinished(remote.connect().await, request()).await;
        note(&mut seen, &method, described, &answer);
    }

    // What the config file, the kernel and the end of the daemon bring.
    let good = std::fs::read_to_string(world.config_file()).unwrap();
    std::fs::write(world.config_file(), "[").unwrap();
    let answer = remote
        .send(&remote.operate, Method::POST, "/v1/reload", "")
        .await;
    note(&mut seen, &Method::POST, "/v1/reload", &answer);
    let answer = remote.send(&remote.read, Method::GET, "/v1/plan", "").await;
    note(&mut seen, &Method::GET, "/v1/plan", &answer);
    std::fs::write(world.config_file(), good).unwrap();
    let answer = remote.send(&remote.operate, put.clone(), BACKEND, "").await;
    assert_eq!(answer.status, 204);
    world.plane.fail(Some("gone"));
    let mut failing: Vec<_> = [
        "/v1/status",
        "/v1/plan",
        "/v1/vips",
        "/v1/backends",
        "/v1/flows",
        "/v1/drops",
        "/metrics",
    ]
    .map(get)
    .into();
    failing.extend([post_limit(&LIMIT.replace("udp", "icmp")), reload()]);
    failing.extend([drain(&delete, BACKEND), drain(&put, BACKEND)]);
    for (method, described, path, body) in failing {
        let answer = remote
            .send(&remote.operate, method.clone(), path, body)
            .await;
        note(&mut seen, &method, described, &answer);
    }
    world.plane.fail(None);

    let readers = async {
        remote
            .send(&remote.read, Method::GET, "/v1/events", "")
            .await
    };
    let readers = events::with_all_places_taken(&remote, readers).await;
    note(&mut seen, &Method::GET, "/v1/events", &readers);
    events::note_head(&remote, |status| {
        seen.insert(("get".into(), "/v1/events".into(), status));
    })
    .await;

    let [control, ..] = world.tasks.as_slice() else {
        unreachable!("it was started")
    };
    control.abort();
    while !control.is_finished() {
        tokio::task::yield_now().await;
    }
    let mut ended: Vec<_> = [
        "/v1/status",
        "/v1/plan",
        "/v1/vips",
        "/v1/backends",
        "/v1/flows",
        "/v1/drops",
        "/v1/limits",
        "/v1/rules",
        "/metrics",
    ]
    .map(get)
    .into();
    ended.extend([
        post_limit(LIMIT),
        put_limit("/v1/limits/1", LIMIT),
        post_rule(RULE),
        put_rule("/v1/rules/1", RULE),
        reload(),
    ]);
    ended.extend([
        post(REVERT, "/v1/mitigations/3/revert"),
        post(ALLOW, "/v1/mitigations/2/allow"),
    ]);
    ended.extend([&put, &delete].map(|method| drain(method, BACKEND)));
    ended.extend(
        [Method::GET, delete.clone()].map(|method| (method, ONE, "/v1/limits/1", String::new())),
    );
    ended.extend(
        [Method::GET, delete.clone()]
            .map(|method| (method, ONE_RULE, "/v1/rules/1", String::new())),
    );
    for [all, one, _, second, ..] in SOURCES {
        ended.extend([
            (Method::GET, all, all, String::new()),
            (Method::POST, all, all, SET.to_owned()),
            (put.clone(), one, second, SET.to_owned()),
            (delete.clone(), one, second, String::new()),
            (Method::GET, one, second, String::new()),
        ]);
    }
    for (method, described, path, body) in ended {
        let answer = remote
            .send(&remote.operate, method.clone(), path, body)
            .await;
        note(&mut seen, &method, described, &answer);
    }
    let early = World::start(CONFIG);
    note(
        &mut seen,
        &Method::GET,
        "/readyz",
        &early.get("/readyz").await,
    );

    let described = operations(document()).flat_map(|(path, method, operation)| {
        let statuses = operation["responses"].as_object().unwrap().keys();
        statuses.map(move |status| (method.to_owned(), path.to_owned(), status.parse().unwrap()))
    });
    let missing: Vec<_> = described.filter(|answer| !seen.contains(answer)).collect();
    assert!(missing.is_empty(), "described, but not seen: {missing:#?}");
}

#[tokio::test]
async fn a_condition_that_nobody_looks_at_is_refused() {
    let world = World::ready().await;
    let mut refusing = Vec::new();
    for (path, method, operation) in operations(document()) {
        let mut parameters = operation["parameters"].as_array().into_iter().flatten();
        if method == "get" || parameters.any(|parameter| parameter["name"] == "If-Match") {
            continue;
        }
        let called = path
            .replace("{id}", "1")
            .replace("{kind}", "backend")
            .replace("{name}", "web/10.0.0.1");
        for (header, value) in [(header::IF_MATCH, "\"1-1\""), (header::IF_NONE_MATCH, "*")] {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer = world
                .send_if(method, &called, "", header.clone(), value)
                .await;
            assert_problem(&answer, 400, "condition");
            let field = answer.json()["field"].as_str().unwrap().to_lowercase();
            assert_eq!(field, header.as_str(), "{path}");
        }
        refusing.push(format!("{method} {path}"));
    }
    let expected = [
        format!("delete {DRAIN}"),
        format!("post {ALLOW}"),
        format!("post {REVERT}"),
        "post /v1/reload".to_owned(),
        format!("post {PREVIEW}"),
        format!("put {DRAIN}"),
    ];
    refusing.sort();
    assert_eq!(refusing, expected);
}

/// A list, one of its filters, and if that takes words: one that is none, and the word that was meant.
type Filter = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

/// All filters, but for `limit` and `after`.
const FILTERS: [Filter; 25] = [
    ("/v1/vips", "name", None),
    ("/v1/vips", "pool", None),
    ("/v1/backends", "pool", None),
    ("/v1/backends", "state", Some(("dwon", "down"))),
    ("/v1/flows", "pool", None),
    ("/v1/drops", "vip", None),
    ("/v1/drops", "reason", Some(("dney", "deny"))),
    ("/v1/drops", "mode", Some(("monitr", "monitor"))),
    ("/v1/limits", "vip", None),
    ("/v1/limits", "class", Some(("upd", "udp"))),
    ("/v1/limits", "mode", Some(("enforced", "enforce"))),
    ("/v1/limits", "comment", None),
    ("/v1/limits", "within", Some(("x", "prefix"))),
    ("/v1/limits", "covers", Some(("x", "prefix"))),
    ("/v1/rules", "vip", None),
    ("/v1/rules", "origin", Some(("opertor", "operator"))),
    ("/v1/rules", "comment", None),
    ("/v1/deny", "key", None),
    ("/v1/deny", "covers", Some(("x", "address"))),
    ("/v1/allow", "key", None),
    ("/v1/allow", "covers", Some(("x", "address"))),
    ("/v1/mitigations", "vip", None),
    ("/v1/mitigations", "state", Some(("activ", "active"))),
    ("/v1/talkers", "by", Some(("packet", "packets"))),
    ("/v1/talkers", "seconds", Some(("x", "number"))),
];

#[tokio::test]
async fn a_filter_that_cannot_match_is_refused_and_the_nearest_word_told() {
    let world = World::ready().await;
    // It names a VIP, and one that is not there is not found.
    let mut known = BTreeSet::from([("/v1/talkers".to_owned(), "vip".to_owned())]);
    for (path, name, typo) in FILTERS {
        let (given, meant) = typo.unwrap_or(("nosuch", ""));
        let answer = world.get(&format!("{path}?{name}={given}")).await;
        match typo {
            None => assert_eq!(answer.json()["items"], json!([]), "{path}?{name}"),
            Some(_) => {
                assert_problem(&answer, 400, meant);
                assert_eq!(answer.json()["field"], name, "{path}");
            }
        }
        known.insert((path.to_owned(), name.to_owned()));
    }
    let described = operations(document()).flat_map(|(path, _, operation)| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let named = parameters.filter(|parameter| parameter["in"] == "query");
        named.map(|parameter| {
            (
                path.to_owned(),
                parameter["name"].as_str().unwrap().to_owned(),
            )
        })
    });
    let described: BTreeSet<_> = described
        .filter(|(_, name)| !["limit", "after"].contains(&name.as_str()))
        .collect();
    assert_eq!(known, described);
}

#[tokio::test]
async fn the_page_shows_every_operation_and_asks_nobody() {
    let world = World::start(CONFIG);
    let answer = world.get("/v1/docs").await;
    assert_eq!(answer.kind, "text/html; charset=utf-8");
    let page = answer.text();
    for (path, method, operation) in operations(document()) {
        let title = format!(
            "<b class=\"m\">{}</b><code>{path}</code>",
            method.to_uppercase()
        );
        assert!(page.contains(&title), "no {method} {path}");
        assert!(
            operation["summary"].is_string(),
            "{method} {path} says nothing"
        );
    }
    for name in document()["components"]["schemas"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(page.contains(&format!("id=\"{name}\"")), "no {name}");
    }
    assert!(!page.contains("<script") && !page.contains("src="));
    for link in page.split("href=\"").skip(1) {
        assert!(link.starts_with(['#', '/']), "{link}");
    }
    let described = world.get("/v1/openapi.json").await;
    assert_eq!(described.json(), *document());
    assert!(document()["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[tokio::test]
async fn the_live_page_is_whole_and_asks_only_routes_that_there_are() {
    let world = World::start(CONFIG);
    let answer = world.get("/").await;
    assert_eq!(
        (answer.status, answer.kind.as_str()),
        (200, "text/html; charset=utf-8")
    );
    let page = answer.text();
    let policy = answer.headers[header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(policy.contains("connect-src 'self'"), "{policy}");
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    for (tag, source) in [("style", "style-src"), ("script", "script-src")] {
        let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
        let (text, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
        assert!(
            !rest.contains(&format!("<{tag}")),
            "one {tag}, which the policy knows"
        );
        assert!(policy.contains(&format!("{source} '{}'", super::super::page::hash(text))));
    }
    for foreign in [
        "://",
        "src=",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "eval(",
        " style=",
        " onclick",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }

    let paths = document()["paths"].as_object().unwrap();
    let asked: BTreeSet<&str> = page
        .split(['"', '`', '?', '$'])
        .filter(|word| word.starts_with('/') && !word.contains(['\n', '*', ' ']))
        .collect();
    for path in &asked {
        assert!(paths.contains_key(*path), "{path} of {asked:?}");
    }
    for path in [
        "/v1/status",
        "/v1/vips",
        "/v1/backends",
        "/v1/flows",
        "/v1/drops",
        "/v1/limits",
        "/v1/events",
    ] {
        assert!(asked.contains(path), "{path} of {asked:?}");
    }
}
