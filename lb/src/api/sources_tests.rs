//! Denied and allowed sources over a real socket: set, listed, imported, replaced, removed, refused, and after a restart.

use hyper::{Method, header};
use serde_json::{Value, json};
use sluice_ebpf::abi::NO_VIP;

use super::tests::{Answer, CONFIG, World, assert_problem};
use crate::{dataplane::Purpose, sources::writer::Writer};

async fn post(world: &World, path: &str, body: Value) -> Answer {
    world.send(Method::POST, path, body.to_string()).await
}

#[tokio::test]
async fn prefixes_and_lists_are_set_shown_replaced_and_removed() {
    let world = World::ready().await;
    let one = json!({ "prefix": "198.51.100.0/24", "ttl_seconds": 60, "comment": "him" });
    let set = post(&world, "/v1/deny", one.clone()).await;
    assert_eq!(set.status, 201, "{}", set.text());
    let item = set.json();
    assert_eq!((&item["id"], &item["kind"]), (&json!(1), &json!("deny")));
    assert_eq!(item["matched_packets"], Value::Null, "it shares its set");
    assert!(item["expires"].is_string());
    assert_eq!(post(&world, "/v1/deny", one).await.status, 200);
    let list = json!({ "name": "drop", "list": "# a list\n192.0.2.0/24\n2001:db8::/32 ; SBL\n", "mode": "monitor" });
    let imported = post(&world, "/v1/deny", list).await;
    assert_eq!(imported.status, 201, "{}", imported.text());
    let imported = imported.json();
    assert_eq!(
        (&imported["lines"], &imported["skipped"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(
        (&imported["ranges_v4"], &imported["prefixes_v6"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(imported["matched_packets"], 6);
    let friend = json!({ "prefix": "2001:db8::1" });
    assert_eq!(post(&world, "/v1/allow", friend).await.status, 201);
    assert_eq!(
        world.plane.sources(),
        [
            (4, Purpose::Monitor, 1),
            (1, Purpose::Deny, 1),
            (3, Purpose::Allow, 0)
        ]
    );
    let covers = world.get("/v1/deny?covers=192.0.2.7").await.json();
    assert_eq!(covers["items"][0]["name"], "drop");
    assert_eq!(covers["items"].as_array().unwrap().len(), 1);
    let by_prefix = world.get("/v1/deny?key=198.51.100.0%2F24").await.json();
    assert_eq!(by_prefix["items"][0]["id"], 1);
    let again = json!({ "name": "drop", "prefixes": ["203.0.113.0/24", "10.0.0.0/8"] });
    let put = world
        .send(Method::PUT, "/v1/deny/drop", again.to_string())
        .await;
    assert_eq!(put.status, 200, "{}", put.text());
    assert_eq!(world.plane.sources()[0], (4, Purpose::Deny, 2));
    assert_eq!(
        world.send(Method::DELETE, "/v1/deny/drop", "").await.status,
        204
    );
    assert_eq!(
        world.send(Method::DELETE, "/v1/deny/1", "").await.status,
        204
    );
    assert_problem(&world.get("/v1/deny/drop").await, 404, "drop");
    let other_kind = world.send(Method::DELETE, "/v1/deny/3", "").await;
    assert_problem(&other_kind, 404, "3");
    assert_eq!(world.plane.sources(), [(3, Purpose::Allow, 0)]);
}

#[tokio::test]
async fn a_list_is_refused_whole_with_its_line_or_without_the_bad_ones() {
    let world = World::ready().await;
    let list = |skip: bool| json!({ "name": "list", "list": "192.0.2.0/24\nnonsense\n198.51.100.0/24\n", "skip_bad": skip });
    let refused = post(&world, "/v1/deny", list(false)).await;
    assert_problem(&refused, 422, "line 2: \"nonsense\"");
    assert_eq!(refused.json()["field"], "list");
    assert_eq!(world.plane.sources(), []);
    let taken = post(&world, "/v1/deny", list(true)).await.json();
    assert_eq!((&taken["lines"], &taken["skipped"]), (&json!(2), &json!(1)));
    assert!(taken["bad"][0].as_str().unwrap().starts_with("line 2:"));
    for (body, field) in [
        (json!({ "name": "a", "list": "" }), "list"),
        (json!({ "name": "1", "list": "192.0.2.1" }), "name"),
        (
            json!({ "name": "a", "list": "192.0.2.1", "prefixes": [] }),
            "prefixes",
        ),
        (json!({ "name": "a", "list": 7 }), "list"),
        (json!({ "prefix": "192.0.2.1/24" }), "prefix"),
        (json!({ "prefix": "192.0.2.1", "mode": "off" }), "mode"),
    ] {
        let answer = post(&world, "/v1/deny", body.clone()).await;
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        assert_eq!(answer.json()["field"], field, "{body}");
    }
}

#[tokio::test]
async fn what_finds_no_room_changes_nothing_on_the_disk_either() {
    let world = World::ready().await;
    let one = json!({ "name": "one", "prefixes": ["192.0.2.0/24"] });
    assert_eq!(post(&world, "/v1/deny", one).await.status, 201);
    world.plane.make_room_for(Some(1));
    let more = json!({ "name": "one", "prefixes": ["192.0.2.0/24", "198.51.100.0/24"] });
    let refused = post(&world, "/v1/deny", more).await;
    assert_problem(&refused, 409, "no room");
    let other = json!({ "name": "other", "prefixes": ["198.51.100.0/24"] });
    assert_problem(&post(&world, "/v1/deny", other).await, 409, "no room");
    let world = World::ready_in(world.stop().await).await;
    let items = world.get("/v1/deny").await.json();
    assert_eq!(items["items"].as_array().unwrap().len(), 1, "{items}");
    assert_eq!(
        (&items["items"][0]["name"], &items["items"][0]["ranges_v4"]),
        (&json!("one"), &json!(1))
    );
}

#[tokio::test]
async fn an_entry_that_is_put_again_stays_what_it_is() {
    let world = World::ready().await;
    let one = json!({ "name": "one", "prefixes": ["192.0.2.0/24"], "ttl_seconds": 60 });
    for path in ["/v1/deny", "/v1/allow"] {
        let set = post(&world, path, one.clone()).await;
        let put = async |body: &Value| {
            let path = format!("{path}/one");
            world.send(Method::PUT, &path, body.to_string()).await
        };
        let same = put(&one).await;
        assert_eq!((same.status, &same.etag), (200, &set.etag));
        assert_eq!(same.json(), set.json(), "its time included");
        let other = json!({ "name": "one", "prefixes": ["192.0.2.0/25"], "ttl_seconds": 60 });
        assert_ne!(put(&other).await.etag, set.etag);
    }
}

#[tokio::test]
async fn a_stale_entry_is_not_replaced() {
    let world = World::ready().await;
    let one = json!({ "name": "one", "prefixes": ["192.0.2.0/24"] });
    let set = post(&world, "/v1/allow", one.clone()).await;
    assert_eq!(post(&world, "/v1/allow", one.clone()).await.status, 200);
    let stale = world
        .send_if(
            Method::PUT,
            "/v1/allow/one",
            one.to_string(),
            header::IF_MATCH,
            &set.etag,
        )
        .await;
    assert_problem(&stale, 412, "changed meanwhile");
}

#[tokio::test]
async fn an_entry_of_one_vip_is_for_that_vip_while_it_is_there() {
    let world = World::ready().await;
    let list = json!({ "name": "list", "prefixes": ["192.0.2.0/24"], "vip": "site" });
    let set = post(&world, "/v1/deny", list).await;
    assert_eq!((set.status, &set.json()["vip"]), (201, &json!("site")));
    for (n, vip) in [(2, json!("site")), (3, Value::Null), (2, json!("site"))] {
        let one = json!({ "prefix": "198.51.100.7", "vip": vip });
        let set = post(&world, "/v1/deny", one).await.json();
        assert_eq!((&set["id"], &set["vip"]), (&json!(n), &vip));
    }
    let nowhere = json!({ "prefix": "198.51.100.7", "vip": "nowhere" });
    let refused = post(&world, "/v1/deny", nowhere).await;
    assert_problem(&refused, 422, "no VIP `nowhere`");
    assert_eq!(refused.json()["field"], "vip");
    let of = |vip| [(4, vip), (1, None), (5, vip)];
    assert_eq!(world.plane.source_vips(), of(Some(1)));

    let renamed = CONFIG.replace("\"site\"", "\"other\"");
    std::fs::write(world.config_file(), renamed).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(world.plane.source_vips(), of(Some(NO_VIP)));
    let world = World::ready_in(world.stop().await).await;
    assert_eq!(world.plane.source_vips(), of(Some(1)), "it is there again");
    assert_eq!(world.get("/v1/deny/list").await.json()["vip"], "site");
}

#[tokio::test]
async fn sets_of_the_config_hold_as_long_as_they_stand_there() {
    let world = World::ready().await;
    let one = json!({ "name": "mine", "prefixes": ["192.0.2.0/24"] });
    assert_eq!(post(&world, "/v1/deny", one).await.status, 201);
    let file = world.dir.path().join("list.txt");
    std::fs::write(&file, "198.51.100.0/24\n").unwrap();
    let with = format!(
        "{CONFIG}\n[[deny]]\nname = \"list\"\nfile = {file:?}\n[[allow]]\nname = \"friends\"\nprefixes = [\"203.0.113.7\"]\n"
    );
    std::fs::write(world.config_file(), &with).unwrap();
    let reloaded = world.send(Method::POST, "/v1/reload", "").await;
    assert_eq!(reloaded.status, 204, "{}", reloaded.text());
    let mut sets = world.plane.sources();
    sets.sort_by_key(|(number, ..)| *number);
    assert_eq!(
        sets,
        [
            (4, Purpose::Deny, 1),
            (62, Purpose::Allow, 1),
            (63, Purpose::Deny, 1)
        ]
    );
    let item = world.get("/v1/deny/list").await.json();
    assert_eq!(item["of_config"], true);
    let path = format!("/v1/deny/{}", item["id"]);
    assert_problem(
        &world.send(Method::DELETE, &path, "").await,
        409,
        "config file",
    );
    let same = json!({ "name": "list", "prefixes": ["192.0.2.0/24"] });
    assert_problem(&post(&world, "/v1/deny", same).await, 409, "config file");
    std::fs::write(&file, "198.51.100.0/24\n192.0.2.0/33\n").unwrap();
    let refused = world.send(Method::POST, "/v1/reload", "").await;
    assert_problem(&refused, 422, "line 2");
    std::fs::write(&file, "198.51.100.0/24\n10.0.0.0/8\n").unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert!(
        world.plane.sources().contains(&(63, Purpose::Deny, 2)),
        "the file was read again"
    );
    std::fs::write(world.config_file(), CONFIG).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(world.plane.sources(), [(4, Purpose::Deny, 1)]);
}

#[tokio::test]
async fn a_country_of_the_config_follows_its_database_and_stays_without() {
    let world = World::ready().await;
    let file = world.dir.path().join("geo.mmdb");
    let tell = |networks: &[&str]| {
        let mut database = Writer::new("Test-Country", 28, 6);
        let record = database.country("KP");
        for network in networks {
            database.put(network.parse().unwrap(), record);
        }
        std::fs::write(&file, database.bytes()).unwrap();
    };
    let reload = || world.send(Method::POST, "/v1/reload", "");
    tell(&["198.51.100.0/24"]);
    let with = format!(
        "{CONFIG}\n[geo]\ndatabases = [{file:?}]\n[[deny]]\nname = \"kp\"\ncountries = [\"KP\"]\n"
    );
    std::fs::write(world.config_file(), &with).unwrap();
    let reloaded = reload().await;
    assert_eq!(reloaded.status, 204, "{}", reloaded.text());
    let covers = world.get("/v1/deny?covers=198.51.100.7").await.json();
    assert_eq!(covers["items"][0]["name"], "kp");
    tell(&["198.51.100.0/24", "192.0.2.0/24"]);
    assert_eq!(reload().await.status, 204);
    let both = [(63, Purpose::Deny, 2)];
    assert_eq!(world.plane.sources(), both, "the file was read again");
    std::fs::write(&file, "192.0.2.0/24\n").unwrap();
    assert_problem(&reload().await, 422, "geo.mmdb: this is no MMDB file");
    std::fs::remove_file(&file).unwrap();
    let refused = reload().await;
    assert_problem(&refused, 422, "cannot read");
    assert_eq!(refused.json()["errors"][0]["line"], 20, "where it is named");
    assert_eq!(world.plane.sources(), both, "the set from before holds");
}
