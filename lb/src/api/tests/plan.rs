//! What a reload would do is told, and nothing is done.

use super::*;

async fn plan(world: &World, config: &str) -> Value {
    std::fs::write(world.config_file(), config).unwrap();
    let answer = world.get("/v1/plan").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn only_vip(plan: &Value) -> Value {
    let vips = plan["vips"].as_array().unwrap();
    assert_eq!(vips.len(), 1, "{plan}");
    vips[0].clone()
}

fn slots_moved(vip: &Value) -> f64 {
    vip["slots_moved"].as_f64().unwrap() / vip["slots"].as_f64().unwrap()
}

#[tokio::test]
async fn an_unchanged_file_needs_no_step() {
    let world = World::ready().await;
    let plan = plan(&world, CONFIG).await;
    let (steps, vips) = (&plan["steps"], &plan["vips"]);
    assert_eq!((steps, vips), (&json!([]), &json!([])));
    let status = world.get("/v1/status").await.json();
    assert_eq!(plan["config_hash"], status["config_hash"]);
    assert_eq!(plan["config_file"], status["config_file"]);
}

#[tokio::test]
async fn rules_of_the_file_are_steps_of_their_own() {
    let world = World::ready().await;
    let rule = |text| format!("{CONFIG}\n[[rule]]\ntext = \"{text}\"\n");
    let told = plan(&world, &rule("ttl 4 -> drop")).await;
    assert_eq!(told["steps"], json!(["put rule ttl 4 -> drop"]));
    assert_eq!(world.plane.rules(), [""; 0]);
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    let told = plan(&world, &rule("ttl 5 -> drop")).await;
    let steps = ["put rule ttl 5 -> drop", "remove rule ttl 4 -> drop"];
    assert_eq!(told["steps"], json!(steps));
}

#[tokio::test]
async fn settings_of_the_daemon_are_steps_too() {
    let world = World::ready().await;
    let policy = "[[policy]]\nname = \"lab\"\n";
    let vip_with_policy =
        CONFIG.replace("forward = \"ipip\"", "forward = \"ipip\"\npolicy = \"lab\"");
    let config =
        format!("{vip_with_policy}{policy}[detect]\nmode = \"advise\"\n[host]\nprotect = []\n");
    plan(&world, &config).await;
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    for (old, new, steps) in [
        (
            "port = 80 }",
            "port = 81 }",
            &["change health of pool web"][..],
        ),
        (
            "name = \"web\"",
            "name = \"web\"\nslow_start = \"5s\"\nall_down = \"reset\"",
            &["change all_down, slow_start of pool web", "put VIP site"],
        ),
        (
            "name = \"lab\"",
            "name = \"lab\"\ndetect = \"off\"",
            &["change detect of policy lab"],
        ),
        (
            "name = \"lab\"",
            "name = \"lab\"\nbogons = \"monitor\"\nsanity = { land = \"off\" }",
            &["change sanity, bogons of policy lab", "put VIP site"],
        ),
        (
            "mode = \"advise\"",
            "mode = \"enforce\"\nthresholds = { factor = 4 }\nquiet = \"90s\"",
            &["change mode, thresholds, quiet of [detect]"],
        ),
        (
            "name = \"ams\"",
            "name = \"fra\"",
            &["change name of [pop]"],
        ),
        (
            "protect = []",
            "protect = [\"tcp/22\"]",
            &["change protect of [host]"],
        ),
        (
            "[[policy]]",
            "[[pool]]\nname = \"spare\"\nhealth = { kind = \"none\" }\nbackend = [{ address = \"10.0.0.9\" }]\n[[policy]]",
            &["hold what differs in the file; no packet meets it now"],
        ),
    ] {
        assert!(config.contains(old), "{old}");
        let told = plan(&world, &config.replacen(old, new, 1)).await;
        assert_eq!(told["steps"], json!(steps), "{new}");
    }
}

#[tokio::test]
async fn a_plan_tells_what_moves_and_changes_nothing() {
    let world = World::ready().await;
    let before = (world.plane.held(), world.handle.view().config.clone());
    let added = CONFIG.replace(
        "forward = \"gue\" }]",
        "forward = \"gue\" }, { address = \"10.0.0.3\", weight = 6 }]",
    );
    let told = plan(&world, &added).await;
    assert_eq!(told["assumed_up"], json!(["web/10.0.0.3"]));
    assert_eq!(
        told["steps"],
        json!([
            "put backend 10.0.0.3 of pool web",
            "put lookup table of pool web",
            "put VIP site"
        ])
    );
    let site = only_vip(&told);
    assert_eq!(
        (&site["name"], &site["change"]),
        (&json!("site"), &json!("changed"))
    );
    assert!(
        (0.45..0.55).contains(&slots_moved(&site)),
        "half the weight: {site}"
    );
    assert_eq!(
        (&site["flows_stay"], &site["flows_lost"]),
        (&json!(10), &json!(0))
    );

    let removed = CONFIG.replace("{ address = \"10.0.0.1\" }, ", "");
    let site = only_vip(&plan(&world, &removed).await);
    assert!((0.1..0.25).contains(&slots_moved(&site)), "a sixth: {site}");
    assert_eq!(
        (&site["flows_stay"], &site["flows_lost"]),
        (&json!(5), &json!(5))
    );

    let other_way = CONFIG.replace("forward = \"ipip\"", "forward = \"gue\"");
    let site = only_vip(&plan(&world, &other_way).await);
    assert_eq!(
        (&site["slots_moved"], &site["flows_lost"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(
        site["flows_stay"], 10,
        "they get there by another way: {site}"
    );

    let renamed = CONFIG.replace("name = \"site\"", "name = \"other\"");
    let vips = plan(&world, &renamed).await["vips"].clone();
    let changes: Vec<_> = [0, 1].map(|at| vips[at]["change"].clone()).into();
    assert_eq!(changes, ["added", "removed"], "{vips}");
    assert_eq!(
        (&vips[1]["flows_stay"], &vips[1]["flows_lost"]),
        (&json!(0), &json!(10))
    );

    assert_eq!(world.plane.held(), before.0);
    let view = world.handle.view();
    assert!(Arc::ptr_eq(&view.config, &before.1) && view.last_reload.error.is_none());
}

#[tokio::test]
async fn flows_of_backends_that_vips_share_are_told_to_be_shared() {
    let world = World::ready().await;
    let two = CONFIG.to_owned()
        + "[[vip]]\nname = \"tls\"\naddress = \"192.0.2.10\"\nprotocol = \"tcp\"\nport = 443\npool = \"web\"\nforward = \"ipip\"\n";
    let added = only_vip(&plan(&world, &two).await);
    assert_eq!(
        (&added["name"], &added["change"]),
        (&json!("tls"), &json!("added"))
    );
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    let removed = only_vip(&plan(&world, CONFIG).await);
    assert_eq!(removed["flows_shared_with"], json!(["site"]));
}

#[tokio::test]
async fn a_plan_of_a_bad_file_has_each_error_with_its_place() {
    let world = World::ready().await;
    let bad = CONFIG
        .replace("weight = 5", "wieght = 5")
        .replace("port = 80\npool", "port = 80000\npool");
    std::fs::write(world.config_file(), bad).unwrap();
    for (method, path) in [(Method::GET, "/v1/plan"), (Method::POST, "/v1/reload")] {
        let answer = world.send(method, path, "").await;
        assert_problem(&answer, 422, "did you mean `weight`?");
        let problem = answer.json();
        let errors = problem["errors"].as_array().unwrap();
        let lines: Vec<_> = errors.iter().map(|error| error["line"].clone()).collect();
        assert_eq!(lines, [10, 15], "{problem}");
        assert_eq!(errors[0]["file"], json!(world.config_file()));
        let message = errors[1]["message"].as_str().unwrap();
        assert!(message.contains("80000"), "{message}");
    }
    let flows = CONFIG.replace("[dataplane]", "[dataplane]\nflows = 2_048");
    std::fs::write(world.config_file(), flows).unwrap();
    assert_problem(&world.get("/v1/plan").await, 422, "sluice unload");
    std::fs::remove_file(world.config_file()).unwrap();
    assert_problem(&world.get("/v1/plan").await, 422, "cannot read the config");
}

#[tokio::test]
async fn a_plan_that_the_data_plane_would_refuse_says_so() {
    let world = World::ready().await;
    world.plane.fail(Some("no room"));
    assert_problem(&world.get("/v1/plan").await, 500, "no room");
    let early = World::start(CONFIG);
    assert_problem(&early.get("/v1/plan").await, 503, "has just started");
}
