//! The table of routes: the router, the OpenAPI document and the index are all made from it.

use crate::config::Query;

/// What HTTP calls a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Asks, and changes nothing.
    Get,
    /// Does something.
    Post,
    /// Makes something what is sent.
    Put,
}

impl Method {
    /// As it stands in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        }
    }
}

/// One thing that can be asked for.
#[derive(Debug)]
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path; `{name}` stands for one segment.
    pub path: &'static str,
    /// One sentence about it, without a full stop.
    pub summary: &'static str,
    /// What is done.
    pub(super) act: Act,
}

/// What a route does.
#[derive(Debug)]
pub(super) enum Act {
    /// Answers this question.
    Ask(Query),
    /// The same of the service in the path.
    AskService,
    /// Does the command in the body; with `dry-run` only says whether it could be done.
    Do,
    /// Does each of the commands in the body, whatever becomes of the others.
    Each,
    /// Makes the director what the text in the body says.
    Apply,
    /// Stops the daemon.
    Stop,
    /// The services as lines of ipvsadm.
    Rules,
    /// The story of the first connection.
    Story,
    /// The names of the texts of `/proc/net`.
    ProcFiles,
    /// One of them.
    ProcText,
    /// The OpenAPI document.
    OpenApi,
    /// This table, for people.
    Index,
    /// The names of the schedulers.
    Schedulers,
    /// One of every command.
    Examples,
}

const fn get(path: &'static str, summary: &'static str, act: Act) -> Route {
    route(Method::Get, path, summary, act)
}

const fn post(path: &'static str, summary: &'static str, act: Act) -> Route {
    route(Method::Post, path, summary, act)
}

const fn put(path: &'static str, summary: &'static str, act: Act) -> Route {
    route(Method::Put, path, summary, act)
}

const fn route(method: Method, path: &'static str, summary: &'static str, act: Act) -> Route {
    Route {
        method,
        path,
        summary,
        act,
    }
}

/// Every route there is.
pub static ROUTES: [Route; 23] = [
    get("/", "What there is, in one line each", Act::Index),
    get(
        "/openapi.json",
        "This API as an OpenAPI 3.1 document",
        Act::OpenApi,
    ),
    post(
        "/v1/do",
        "Do one command, or a batch of them, whole or not at all",
        Act::Do,
    ),
    post(
        "/v1/each",
        "Do several commands, each on its own",
        Act::Each,
    ),
    put(
        "/v1/config",
        "Make the director what ulvs.toml or lines of ipvsadm-save say, by the fewest changes, \
         all or none",
        Act::Apply,
    ),
    post("/v1/stop", "Stop the director in order", Act::Stop),
    get(
        "/v1/services",
        "All services with servers, connections, counters and rates",
        Act::Ask(Query::Services(None)),
    ),
    get("/v1/services/{service}", "One service", Act::AskService),
    get(
        "/v1/connections",
        "All connection entries",
        Act::Ask(Query::Connections),
    ),
    get(
        "/v1/masqueraded",
        "The connections that masqueraded hosts opened",
        Act::Ask(Query::Masqueraded),
    ),
    get(
        "/v1/totals",
        "The counters over all services, in total and of each worker",
        Act::Ask(Query::Totals),
    ),
    get(
        "/v1/timeouts",
        "The three timeouts of ipvsadm --set",
        Act::Ask(Query::Timeouts),
    ),
    get("/v1/tunables", "The sysctls", Act::Ask(Query::Tunables)),
    get(
        "/v1/sync-daemons",
        "The daemons of connection synchronisation",
        Act::Ask(Query::SyncDaemons),
    ),
    get(
        "/v1/state",
        "All that commands have configured, at one moment",
        Act::Ask(Query::State),
    ),
    get(
        "/v1/account",
        "Where every frame went: received = forwarded + answered + passed + held + dropped",
        Act::Ask(Query::Account),
    ),
    get(
        "/v1/status",
        "The daemon: version, process, interfaces, connections, and its control socket",
        Act::Ask(Query::Status),
    ),
    get(
        "/v1/rules",
        "The services as lines that ipvsadm -R takes",
        Act::Rules,
    ),
    get(
        "/v1/story",
        "The story of the first connection, packet by packet",
        Act::Story,
    ),
    get(
        "/v1/proc",
        "The names of the texts of /proc/net",
        Act::ProcFiles,
    ),
    get(
        "/v1/proc/{file}",
        "One of them, as the kernel's IPVS would show it",
        Act::ProcText,
    ),
    get(
        "/v1/schedulers",
        "The names of the schedulers",
        Act::Schedulers,
    ),
    get(
        "/v1/examples",
        "One example of every command, to be copied",
        Act::Examples,
    ),
];
