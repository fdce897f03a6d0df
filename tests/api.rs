//! The HTTP of the control socket, in process: every route over a real control plane, byte by byte
//! through the same server that the daemon uses. Workers are played: each takes over a snapshot when
//! the test lets it.

#[path = "api/schema.rs"]
mod schema;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use ulvs::config::command::{AccountRow, ConnRow, MasqueradedRow};
use ulvs::config::{Command, Listing, Query, Reply, Request};
use ulvs::conn::ConnTable;
use ulvs::control::{ClientId, ControlPlane, Input, Output, SCHEDULERS, Setup, TABLE_SIZE};
use ulvs::director::message::{Order, Report};
use ulvs::director::snapshot::{Port, Side, SnapshotId};
use ulvs::director::verdict::Account;
use ulvs::lvs::{Limits, Link, Protocol, SyncRole, SyncRow, Timeouts, Tunables};
use ulvs::rng::Rng;
use ulvs::time::Instant;
use ulvs::web::{self, Api, DoorCounts, HEAD_BYTES_MAX, Method, ROUTES, Submit};
use ulvs::wire::Mac;

const WORKERS: usize = 2;
const ME: ClientId = ClientId(1);
/// Damaged requests that are tried.
const ROUNDS: usize = 5000;

/// A control plane with two workers; the second takes nothing over while it is held.
struct Plane {
    plane: ControlPlane,
    held: Option<Vec<SnapshotId>>,
    waiting: Option<oneshot::Sender<Reply>>,
    requests: Vec<Request>,
    stopped: bool,
}

impl Plane {
    fn new() -> Plane {
        let port = |name: &str, side| Port {
            name: name.to_string(),
            side,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            raw_ip: false,
            kernel: false,
            held: Vec::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            routes_from: Vec::new(),
            neighbours: Vec::new(),
        };
        let setup = Setup {
            ports: vec![port("eth0", Side::Public), port("eth1", Side::Private)],
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            workers: WORKERS,
            table: Arc::new(ConnTable::new(1024, 1)),
            table_size: TABLE_SIZE,
            pid: 4711,
            nic: "memory".to_string(),
        };
        let mut plane = Plane {
            plane: ControlPlane::new(setup, Instant::ZERO),
            held: None,
            waiting: None,
            requests: Vec::new(),
            stopped: false,
        };
        let link = |name: &str| Link {
            name: name.to_string(),
            mtu: 1500,
            up: true,
        };
        plane.hear(Input::LinksChanged(vec![link("eth0"), link("eth1")]));
        plane
    }

    fn hear(&mut self, input: Input) {
        self.plane.handle(input, Instant::ZERO);
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Order { worker, order } => self.obey(worker, order),
                Output::Reply { reply, .. } => {
                    let waiting = self.waiting.take().expect("somebody has asked");
                    let _ = waiting.send(reply);
                }
                Output::Changed => {}
                Output::Stopped => self.stopped = true,
            }
        }
    }

    fn obey(&mut self, worker: usize, order: Order) {
        let report = match order {
            Order::Adopt(snapshot) => match &mut self.held {
                Some(held) if worker == 1 => return held.push(snapshot.id),
                _ => Report::Adopted(snapshot.id),
            },
            Order::Audit(audit) => Report::Account {
                audit,
                account: Account::new(),
                ports: Vec::new(),
                story: vec!["#1 a story".to_string()],
            },
            _ => return,
        };
        self.hear(Input::Reported { worker, report });
    }
}

/// The server and what is behind it.
struct House {
    plane: Arc<Mutex<Plane>>,
    api: Api,
}

impl House {
    fn new() -> House {
        let plane = Arc::new(Mutex::new(Plane::new()));
        let behind = Arc::clone(&plane);
        let submit: Submit = Arc::new(move |request: Request| {
            let (answer, answered) = oneshot::channel();
            let mut plane = behind.lock().unwrap();
            if !plane.stopped {
                plane.requests.push(request.clone());
                plane.waiting = Some(answer);
                plane.hear(Input::Request { from: ME, request });
            }
            Box::pin(async move { answered.await.ok() })
        });
        let api = Api {
            submit,
            schedulers: &SCHEDULERS,
            counts: Arc::new(DoorCounts::default()),
        };
        House { plane, api }
    }

    /// What the server answers to these bytes, until it closes.
    async fn raw(&self, request: &[u8]) -> String {
        self.exchange(request, false).await
    }

    /// The same of a client that ends behind them.
    async fn half(&self, request: &[u8]) -> String {
        self.exchange(request, true).await
    }

    async fn exchange(&self, request: &[u8], ends: bool) -> String {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let served = web::serve(TokioIo::new(far), &self.api);
        let asked = async {
            // It may close before it has read everything.
            let _ = near.write_all(request).await;
            if ends {
                let _ = near.shutdown().await;
            }
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        tokio::join!(served, asked).1
    }

    async fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: ulvs\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        let text = self.raw(&[head.as_bytes(), body].concat()).await;
        Answer::of(&text)
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"").await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, body.to_string().as_bytes()).await
    }

    fn state(&self) -> ulvs::config::command::State {
        self.plane.lock().unwrap().plane.state()
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    kind: String,
    text: String,
}

impl Answer {
    fn of(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let kind = head
            .lines()
            .find_map(|line| line.strip_prefix("content-type: "));
        Answer {
            status: status.expect("a status"),
            kind: kind.unwrap_or_default().to_string(),
            text: body.to_string(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn error(&self, status: u16, code: &str) -> Value {
        let error = self.json()["error"].clone();
        assert_eq!(
            (self.status, &error["code"]),
            (status, &json!(code)),
            "{self:?}"
        );
        error
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

fn add_service(key: &str) -> Value {
    json!({ "add-service": { "key": key } })
}

fn add_real(service: &str, real: &str) -> Value {
    json!({ "add-real": { "service": service, "real": { "key": real, "method": "masq" } } })
}

const RULES: &str = "-A -t 1.2.3.1:80 -s wlc\n-a -t 1.2.3.1:80 -r 192.168.1.1:80 -m -w 2\n";
const WEB: &str = "tcp:1.2.3.1:80";

/// Every route, with the examples of the document.
#[test]
fn the_document_has_every_route_and_its_examples_are_accepted() {
    block_on(async {
        let house = House::new();
        let answer = house.get("/openapi.json").await;
        let document = answer.json();
        assert_eq!(document["openapi"], "3.1.0");
        let mut told = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                told.insert((method.to_uppercase(), path.clone()));
            }
        }
        let there = |route: &web::Route| (route.method.name().to_string(), route.path.to_string());
        assert_eq!(told, ROUTES.iter().map(there).collect());
        // The last one stops the director.
        let (last, others): (Vec<_>, Vec<_>) =
            ROUTES.iter().partition(|route| route.path == "/v1/stop");
        // Reads of one service need one.
        assert_eq!(house.post("/v1/do", add_service(WEB)).await.status, 200);
        for route in others.into_iter().chain(last) {
            let operation = &document["paths"][route.path][route.method.name().to_lowercase()];
            try_examples(&house, route, &document, operation).await;
        }
        assert!(house.plane.lock().unwrap().stopped);
        house.get("/v1/status").await.error(503, "stopping");
    });
}

async fn try_examples(house: &House, route: &web::Route, document: &Value, operation: &Value) {
    let mut path = route.path.to_string();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if let Some(example) = parameter["example"].as_str() {
            path = path.replace(
                &format!("{{{}}}", parameter["name"].as_str().unwrap()),
                example,
            );
        }
    }
    let mut bodies = Vec::new();
    let contents = operation["requestBody"]["content"].as_object();
    for (kind, content) in contents.into_iter().flatten() {
        let named = content["examples"].as_object().into_iter().flatten();
        let named = named.map(|(_, named)| &named["value"]);
        bodies.extend(
            named
                .chain(content.get("example"))
                .map(|body| match kind.as_str() {
                    "application/json" => {
                        let said = schema::check(document, &content["schema"], body, "body");
                        said.unwrap_or_else(|error| panic!("{path}: {error}"));
                        body.to_string()
                    }
                    _ => body.as_str().expect("a text").to_string(),
                }),
        );
    }
    if bodies.is_empty() {
        let no_body = route.method == Method::Get || route.path == "/v1/stop";
        assert!(no_body, "{path}: its body has no example");
        bodies.push(String::new());
    }
    for body in bodies {
        let bytes = body.as_bytes();
        let answer = house.send(route.method.name(), &path, bytes).await;
        // What one example needs, another has taken away: that is a refusal and no mistake in it.
        let fine = answer.status == 200 || [404, 409].contains(&answer.status) && path == "/v1/do";
        assert!(fine, "{path}: {body}: {answer:?}");
        let status = if answer.status == 200 {
            "200"
        } else {
            "default"
        };
        let content = operation["responses"][status]["content"].as_object();
        let (kind, content) = content.unwrap().iter().next().unwrap();
        assert!(answer.kind.starts_with(kind), "{path}: {answer:?}");
        if kind == "application/json" {
            let said = schema::check(document, &content["schema"], &answer.json(), "answer");
            said.unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
}

/// An empty director does one of every command, in the order of the examples, and each variant of
/// `Command` is among them.
#[test]
fn every_command_is_done() {
    block_on(async {
        let house = House::new();
        let commands = house.get("/v1/examples").await.json();
        let commands = commands.as_array().unwrap();
        let mut tags = BTreeSet::new();
        let tag = |value: &Value| match value.as_object() {
            Some(fields) => fields.keys().next().unwrap().clone(),
            None => value.as_str().unwrap().to_string(),
        };
        for command in commands {
            let answer = house.post("/v1/do", command.clone()).await;
            assert_eq!(
                (answer.status, answer.json()),
                (200, json!({ "done": true })),
                "{command}"
            );
            tags.insert(tag(command));
        }
        let document = house.get("/openapi.json").await.json();
        let variants = document["components"]["schemas"]["Command"]["oneOf"]
            .as_array()
            .unwrap();
        let variants: BTreeSet<String> = variants
            .iter()
            .flat_map(|variant| match variant["properties"].as_object() {
                Some(fields) => vec![fields.keys().next().unwrap().clone()],
                None => words(variant),
            })
            .collect();
        assert_eq!(tags, variants, "web::examples shows every command");
        assert_eq!(house.state().services.len(), 1);
    });
}

/// The words of a schema that is one word, or one of several.
fn words(schema: &Value) -> Vec<String> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    let all = listed.chain(schema.get("const"));
    all.map(|word| word.as_str().unwrap().to_string()).collect()
}

/// Rows that a director without traffic does not have are what the document says, too.
#[test]
fn every_row_is_what_the_document_says() {
    let document = web::document();
    let end = |text: &str| text.parse().unwrap();
    let connection = ConnRow {
        protocol: Protocol::UDP,
        client: end("1.2.3.100:40000"),
        virt: end("[fd00::1]:5060"),
        real: end("[fd00::2]:5060"),
        state: "UDP".to_string(),
        expires_s: 299,
        engine: Some(("sip".to_string(), "call-1".to_string())),
        local: Some(end("192.168.1.250:1024")),
    };
    let masqueraded = MasqueradedRow {
        protocol: Protocol::ICMP,
        host: end("192.168.1.11:7"),
        public: end("1.2.3.7:7"),
        target: end("1.2.3.100:7"),
        state: "NONE".to_string(),
        expires_s: 30,
    };
    let daemon = SyncRow {
        role: SyncRole::Backup,
        interface: "eth1".to_string(),
        sync_id: 7,
        maxlen: 1472,
        group: "224.0.0.81".parse().unwrap(),
        port: 8848,
        ttl: 1,
    };
    let account = AccountRow {
        received: 3,
        dropped: 3,
        drops: vec![("no-service".to_string(), 2), ("malformed".to_string(), 1)],
        ports: vec![("eth0".to_string(), [3, 0, 0, 0, 0, 0])],
        silent: vec![1],
        ..AccountRow::default()
    };
    for listing in [
        Listing::Connections(vec![connection]),
        Listing::Masqueraded(vec![masqueraded]),
        Listing::SyncDaemons(vec![daemon]),
        Listing::Account(account),
    ] {
        let text = serde_json::to_string(&listing).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        let schema = json!({ "$ref": "#/components/schemas/Listing" });
        schema::check(&document, &schema, &value, "listing").unwrap();
        assert_eq!(serde_json::from_str::<Listing>(&text).unwrap(), listing);
    }
    // And the looking itself finds what is wrong.
    let schema = json!({ "$ref": "#/components/schemas/Command" });
    for wrong in [
        json!("flusch"),
        json!({ "add-service": { "scheduler": "rr" } }),
    ] {
        assert!(schema::check(&document, &schema, &wrong, "command").is_err());
    }
}

/// Requests with a few bytes changed, cut or doubled: nothing panics, every answer is HTTP, and what is
/// not answered with 200 has changed nothing.
#[test]
fn damaged_requests_change_nothing() {
    let mut rng = Rng::new(20_261_120);
    let bodies = serde_json::to_value(web::document()["paths"]["/v1/do"].clone()).unwrap();
    let bodies = bodies.pointer("/post/requestBody/content/application~1json/examples");
    let bodies: Vec<String> = bodies
        .and_then(Value::as_object)
        .expect("examples")
        .values()
        .map(|example| example["value"].to_string())
        .collect();
    block_on(async {
        let mut house = House::new();
        let (mut done, mut refused) = (0, 0);
        for round in 0..ROUNDS {
            let body = bodies[rng.below(bodies.len() as u64) as usize].as_str();
            let (method, path, body) = match rng.below(4) {
                0 => ("POST", "/v1/do?dry-run", body.to_string()),
                1 => ("POST", "/v1/each", format!("[{body}]")),
                2 => ("PUT", "/v1/config", RULES.to_string()),
                _ => ("POST", "/v1/do", body.to_string()),
            };
            let length = body.len();
            let mut bytes = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                 content-length: {length}\r\n\r\n{body}"
            )
            .into_bytes();
            damage(&mut bytes, &mut rng);
            let before = house.state();
            let answer = house.half(&bytes).await;
            let shown = || format!("round {round}: {}", String::from_utf8_lossy(&bytes));
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 "),
                "{}",
                shown()
            );
            match answer.contains("HTTP/1.1 200") {
                true => done += 1,
                false => {
                    refused += 1;
                    assert_eq!(house.state(), before, "{}", shown());
                }
            }
            if house.plane.lock().unwrap().stopped {
                house = House::new();
            }
        }
        println!("{done} done, {refused} refused");
        assert!(done > ROUNDS / 20 && refused > ROUNDS / 20);
    });
}

/// Damages a few bytes, not always.
fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.below(4) {
        let at = rng.below(bytes.len().max(1) as u64) as usize;
        let to = (at + 1 + rng.below(8) as usize).min(bytes.len());
        match rng.below(4) {
            0 => bytes[at..to].fill(rng.below(256) as u8),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(at),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Every `$ref` of the document points to something.
#[test]
fn the_document_hangs_together() {
    let document = web::document();
    let mut count = 0;
    let mut rest = vec![&document];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                    let target = target.strip_prefix('#').expect("inside the document");
                    assert!(document.pointer(target).is_some(), "{target}");
                    count += 1;
                }
                rest.extend(fields.values());
            }
            Value::Array(values) => rest.extend(values),
            _ => {}
        }
    }
    assert!(count > 50, "only {count} references");
}

#[test]
fn listings_are_those_of_the_line_protocol() {
    block_on(async {
        let house = House::new();
        house.post("/v1/do", add_service(WEB)).await;
        house.post("/v1/do", add_real(WEB, "192.168.1.1:80")).await;
        let mut asked = 0;
        for (path, query) in [
            ("/v1/services", Query::Services(None)),
            (
                "/v1/services/tcp:1.2.3.1:80",
                Query::Services(Some(WEB.parse().unwrap())),
            ),
            ("/v1/connections", Query::Connections),
            ("/v1/masqueraded", Query::Masqueraded),
            ("/v1/totals", Query::Totals),
            ("/v1/timeouts", Query::Timeouts),
            ("/v1/tunables", Query::Tunables),
            ("/v1/sync-daemons", Query::SyncDaemons),
            ("/v1/state", Query::State),
            ("/v1/account", Query::Account),
            ("/v1/status", Query::Status),
        ] {
            let reply = (house.api.submit)(Request::Ask(query)).await;
            let Some(Reply::Listing(listing)) = reply else {
                panic!("{path}: {reply:?}");
            };
            let answer = house.get(path).await;
            assert_eq!(answer.status, 200);
            assert_eq!(
                answer.json(),
                serde_json::to_value(listing).unwrap(),
                "{path}"
            );
            asked += 1;
        }
        let document = web::document();
        let variants = document["components"]["schemas"]["Listing"]["oneOf"].as_array();
        // One service and all are one variant.
        assert_eq!(variants.unwrap().len(), asked - 1, "a listing has no route");
        let services = house.get("/v1/services").await.json();
        let row = &services["services"]["services"][0];
        assert_eq!(row["spec"]["key"], WEB);
        assert_eq!(row["reals"][0]["spec"]["key"], "192.168.1.1:80");
        assert_eq!(row["stats"]["rates"]["bytes_out"], 0);
    });
}

#[test]
fn texts_are_texts() {
    block_on(async {
        let house = House::new();
        let rules = "-A -t 1.2.3.1:80 -s wlc -p 360\n\
                     -a -t 1.2.3.1:80 -r 192.168.1.1:80 -m -w 2 -x 10 -y 5\n\
                     -a -t 1.2.3.1:80 -r 192.168.1.2:80 -m -w 1\n\
                     -A -f 5 -s sh\n";
        let applied = house.send("PUT", "/v1/config", rules.as_bytes()).await;
        assert_eq!(applied.json()["done"], true, "{applied:?}");
        let told = house.get("/v1/rules").await;
        assert_eq!(
            (told.text.as_str(), told.kind.as_str()),
            (rules, "text/plain; charset=utf-8")
        );
        assert_eq!(house.get("/v1/story").await.text, "#1 a story\n");
        let files = house.get("/v1/proc").await.json();
        for file in files.as_array().unwrap() {
            let answer = house
                .get(&format!("/v1/proc/{}", file.as_str().unwrap()))
                .await;
            assert_eq!(answer.status, 200, "{file}");
        }
        let text = house.get("/v1/proc/ip_vs").await.text;
        assert!(text.contains("TCP  01020301:0050 wlc"), "{text}");
        house
            .get("/v1/proc/passwd")
            .await
            .error(404, "no-such-path");
        let index = house.get("/").await.text;
        assert_eq!(index.lines().count(), ROUTES.len());
    });
}

/// The reply comes when every worker has the change, and not before.
#[test]
fn a_change_is_in_force_in_every_worker_when_the_reply_comes() {
    block_on(async {
        let house = House::new();
        house.plane.lock().unwrap().held = Some(Vec::new());
        let mut answer = pin!(house.post("/v1/do", add_service(WEB)));
        // The request is as far as it gets by itself after a bounded number of turns.
        for _ in 0..100 {
            tokio::select! {
                biased;
                answer = &mut answer => panic!("one worker has it not yet: {answer:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        {
            let mut plane = house.plane.lock().unwrap();
            let held = plane.held.take().unwrap();
            assert_eq!(held.len(), 1, "the other worker has been told");
            let report = Report::Adopted(held[0]);
            plane.hear(Input::Reported { worker: 1, report });
        }
        assert_eq!(answer.await.json(), json!({ "done": true }));
    });
}

#[test]
fn a_refusal_has_its_status_and_names_the_command() {
    block_on(async {
        let house = House::new();
        let absent = "tcp:1.2.3.9:80";
        let error = house
            .post("/v1/do", json!({ "delete-service": absent }))
            .await;
        let error = error.error(404, "no-such-service");
        assert_eq!(error["message"], "No such service");
        assert_eq!(error.get("command"), None);
        house.post("/v1/do", add_service(WEB)).await;
        house
            .post("/v1/do", add_service(WEB))
            .await
            .error(409, "service-exists");
        let none = json!({ "add-service": { "key": "udp:1.2.3.1:53", "scheduler": "best" } });
        house
            .post("/v1/do", none)
            .await
            .error(422, "scheduler-not-found");
        house
            .get("/v1/services/tcp:1.2.3.9:80")
            .await
            .error(404, "no-such-service");

        // Whole or not at all.
        let before = house.state();
        let batch = json!({ "batch": [
            add_service("tcp:1.2.3.2:80"),
            add_real("tcp:1.2.3.2:80", "192.168.1.1:80"),
            add_real("tcp:1.2.3.3:80", "192.168.1.1:80"),
        ]});
        let error = house.post("/v1/do", batch.clone()).await;
        assert_eq!(error.error(404, "service-not-defined")["command"], 2);
        assert_eq!(house.state(), before);
        let error = house.post("/v1/do?dry-run", batch.clone()).await;
        assert_eq!(error.error(404, "service-not-defined")["command"], 2);

        // Each on its own.
        let dry = house
            .post("/v1/each?dry-run", batch["batch"].clone())
            .await
            .json();
        assert_eq!(
            dry,
            json!({ "done": false, "refused": [null, null, "service-not-defined"] })
        );
        assert_eq!(house.state(), before);
        let done = house.post("/v1/each", batch["batch"].clone()).await.json();
        assert_eq!(
            done,
            json!({ "done": true, "refused": [null, null, "service-not-defined"] })
        );
        assert_eq!(house.state().services.len(), 2);

        let dry = house.post("/v1/do?dry-run", json!("flush")).await;
        assert_eq!((dry.status, dry.json()), (200, json!({ "done": false })));
        assert_eq!(house.state().services.len(), 2);
    });
}

#[test]
fn what_is_wrong_is_named_at_its_place_and_changes_nothing() {
    block_on(async {
        let house = House::new();
        let before = house.state();
        for (body, line, said) in [
            (
                "{\n  \"add-servce\": {}\n}",
                2,
                "unknown variant `add-servce`",
            ),
            (
                "{\"add-service\":{\"key\":\"tcp:1.2.3.1\"}}",
                1,
                "`tcp:1.2.3.1` is not a service",
            ),
            (
                "{\"add-service\":\n{\"key\":\"tcp:1.2.3.1:80\",\n\"schedular\":\"wlc\"}}",
                3,
                "unknown field `schedular`",
            ),
            ("{\"batch\":[\"flush\"", 1, "EOF while parsing"),
            ("\"flush\" \"flush\"", 1, "trailing characters"),
            ("", 1, "EOF while parsing"),
            ("\u{ff}", 1, "expected value"),
        ] {
            let answer = house.send("POST", "/v1/do", body.as_bytes()).await;
            let error = answer.error(400, "wrong-json");
            assert_eq!(error["line"], line, "{body}: {error}");
            assert!(
                error["message"].as_str().unwrap().starts_with(said),
                "{body}: {error}"
            );
            assert!(
                error["column"].is_u64() && error["near"].is_string(),
                "{error}"
            );
        }
        let deep = "[".repeat(100_000);
        house
            .send("POST", "/v1/each", deep.as_bytes())
            .await
            .error(400, "wrong-json");

        let rules =
            "-A -t 1.2.3.1:80 -s wlc\n-a -t 1.2.3.1:80 -r 192.168.1.1:80 -m\n-A -t nowhere\n";
        let error = house.send("PUT", "/v1/config", rules.as_bytes()).await;
        let error = error.error(400, "wrong-text");
        assert_eq!(
            (&error["line"], &error["column"]),
            (&json!(3), &json!(7)),
            "{error}"
        );
        assert!(
            error["report"].as_str().unwrap().contains("nowhere"),
            "{error}"
        );
        let toml = "[[port]]\ninterface = \"eth0\"\nside = \"public\"\n\
                    [[service]]\ntcp = \"1.2.3.1:80\"\nschedular = \"wlc\"\n";
        let error = house.send("PUT", "/v1/config", toml.as_bytes()).await;
        let error = error.error(400, "wrong-text");
        assert_eq!(
            (&error["line"], &error["column"]),
            (&json!(6), &json!(1)),
            "{error}"
        );
        let error = house
            .send("PUT", "/v1/config", b"-A -t 1.2.3.1:80\n\xff")
            .await;
        assert_eq!(error.error(400, "wrong-json")["line"], 2);

        house.get("/v1/services/80").await.error(400, "wrong-word");
        house
            .get("/v1/services?dry-run")
            .await
            .error(400, "wrong-word");
        house
            .post("/v1/do?wet-run", json!("flush"))
            .await
            .error(400, "wrong-word");
        house.get("/v2").await.error(404, "no-such-path");
        house
            .post("/v1/services", json!({}))
            .await
            .error(405, "wrong-method");
        assert_eq!(house.state(), before);
        let bad = house.api.counts.row().bad_requests;
        assert_eq!(bad, 16, "every one of them is counted");
    });
}

#[test]
fn what_is_no_http_ends_with_a_close() {
    block_on(async {
        let house = House::new();
        for garbage in [
            &b"GARBAGE\r\n\r\n"[..],
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost\r\n\r\n",
            b"POST /v1/do HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
            b"POST /v1/do HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            let answer = house.raw(garbage).await;
            let bad = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
            assert!(bad, "{:?}: {answer}", String::from_utf8_lossy(garbage));
        }
        // Half a head, half a body: nothing is done.
        assert_eq!(house.half(b"GET /v1/sta").await, "");
        let half = b"POST /v1/do HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n\"flush\"";
        let answer = house.half(half).await;
        assert!(!answer.contains("done"), "{answer}");
        // A head, and a body, of any length.
        let long = format!(
            "GET / HTTP/1.1\r\nx: {}\r\n\r\n",
            "y".repeat(2 * HEAD_BYTES_MAX)
        );
        let answer = house.raw(long.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
        let answer = house.raw(many.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let huge = "POST /v1/do HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
        Answer::of(&house.raw(huge.as_bytes()).await).error(413, "too-long");
        let megabyte = vec![b' '; 1 << 20];
        let mut chunks =
            b"POST /v1/do HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..33 {
            chunks.extend_from_slice(b"100000\r\n");
            chunks.extend_from_slice(&megabyte);
            chunks.extend_from_slice(b"\r\n");
        }
        Answer::of(&house.raw(&chunks).await).error(413, "too-long");
        let done = &house.plane.lock().unwrap().requests;
        assert!(done.is_empty(), "{done:?}");
        assert!(house.api.counts.row().bad_requests >= 8);
    });
}

/// The fewest changes, the plan first, and again when somebody else was faster.
#[test]
fn a_configuration_is_applied_whole() {
    block_on(async {
        let house = House::new();
        let toml = "[[port]]\ninterface = \"eth0\"\nside = \"public\"\n\
                    [[service]]\ntcp = \"1.2.3.1:80\"\n\
                    [[service.real]]\naddress = \"192.168.1.1:80\"\nmethod = \"masq\"\n";
        let plan = house
            .send("PUT", "/v1/config?dry-run", toml.as_bytes())
            .await
            .json();
        let changes = json!([
            "-A -t 1.2.3.1:80 -s wlc",
            "-a -t 1.2.3.1:80 -r 192.168.1.1:80 -m -w 1"
        ]);
        assert_eq!((&plan["done"], &plan["changes"]), (&json!(false), &changes));
        let restart = plan["needs_restart"].to_string();
        assert!(
            restart.contains("workers is 2, the file says 1"),
            "{restart}"
        );
        assert_eq!(house.state().services.len(), 0);
        let done = house
            .send("PUT", "/v1/config", toml.as_bytes())
            .await
            .json();
        assert_eq!((&done["done"], &done["changes"]), (&json!(true), &changes));
        assert_eq!(house.state().services.len(), 1);
        let again = house
            .send("PUT", "/v1/config", toml.as_bytes())
            .await
            .json();
        assert_eq!(again["changes"], json!([]));
        // Refused by the director: nothing of it is done.
        let fnat = toml
            .replace("masq", "fnat")
            .replace("1.2.3.1:80", "1.2.3.2:80");
        let refused = house.send("PUT", "/v1/config", fnat.as_bytes()).await;
        assert!([400, 422].contains(&refused.status), "{refused:?}");
        assert_eq!(house.get("/v1/rules").await.text.lines().count(), 2);
        assert!(house.get("/v1/rules").await.text.contains("1.2.3.1:80"));
    });
}

/// Commands come as they went over the line protocol.
#[test]
fn what_is_left_out_is_as_ipvsadm_has_it() {
    let read = |value: Value| serde_json::from_value::<Command>(value).unwrap();
    let Command::AddService(spec) = read(add_service("udp:[fd00::1]:53")) else {
        panic!("no service");
    };
    let key = "udp:[fd00::1]:53".parse().unwrap();
    assert_eq!(spec, ulvs::lvs::ServiceSpec::new(key, "wlc"));
    let real = json!({ "add-real": { "service": WEB, "real": { "key": "10.0.0.1:80" } } });
    let Command::AddReal { real, .. } = read(real) else {
        panic!("no real server");
    };
    assert_eq!(
        (real.weight.0, real.method),
        (1, ulvs::lvs::ForwardMethod::Route)
    );
    let Command::SetTimeouts(said) = read(json!({ "set-timeouts": { "udp_s": 60 } })) else {
        panic!("no timeouts");
    };
    assert_eq!((said.tcp_s, said.tcp_fin_s, said.udp_s), (0, 0, 60));
    for (value, text) in [(json!("3"), "3"), (json!(3), "3"), (json!(true), "1")] {
        let set = json!({ "set-tunable": { "name": "drop_entry", "value": value } });
        let Command::SetTunable { value, .. } = read(set) else {
            panic!("no tunable");
        };
        assert_eq!(value, text);
    }
}
