//! A recorded case as data: what `tests/golden/README.md` calls the head and the steps. Nothing in
//! here plays or compares.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// The only version of the schema there is.
const SCHEMA: &str = "ulvs-oracle/1";

/// One file: a fresh director and what happened to it.
#[derive(Debug, Deserialize)]
pub struct Case {
    schema: String,
    /// Which addresses the network has: `g` or `h`.
    pub net: String,
    /// Topic `sched`: the service, as ipvsadm's words.
    #[serde(default)]
    pub service: Vec<String>,
    /// Topic `sched`: the servers whose counts the steps list.
    #[serde(default)]
    pub servers: Vec<String>,
    /// Topic `sched`: the port that clients ask for.
    #[serde(default)]
    pub vport: u16,
    /// Nothing excuses a difference, not even something that is not built (`tools/kernel/compare`).
    #[serde(default)]
    pub strict: bool,
    /// What happened, in order; read one by one with [`Step::read`].
    pub steps: Vec<Value>,
}

impl Case {
    /// Reads a case.
    ///
    /// # Errors
    /// The file cannot be read, or is not of this schema.
    pub fn read(path: &Path) -> Result<Case, String> {
        let complain = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| complain(&error))?;
        let case: Case = serde_json::from_str(&text).map_err(|error| complain(&error))?;
        if case.schema != SCHEMA {
            return Err(complain(&format!("schema {}", case.schema)));
        }
        Ok(case)
    }
}

/// One step.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    Ipvsadm(Call),
    Sysctl {
        set: BTreeMap<String, String>,
    },
    Cmd {
        cmd: String,
        rc: i32,
    },
    Sleep {
        seconds: f64,
    },
    Packet(Stimulus),
    Show {
        conns: Option<Vec<Entry>>,
        services: Option<Vec<Listed>>,
    },
    Note {
        text: String,
    },
    New(Decision),
    Establish(Ends),
    Close(Ends),
    Reset(Ends),
    Counts {
        n: Vec<Option<[u32; 2]>>,
    },
    Sequence {
        port: u16,
        after: Vec<After>,
    },
    Distribution(Distribution),
    Proc(ProcText),
    SysctlProbe(SysctlProbe),
}

impl Step {
    /// Reads a step.
    ///
    /// # Errors
    /// A kind of step that nobody here can play, or one without its fields.
    pub fn read(value: &Value) -> Result<Step, String> {
        Step::deserialize(value).map_err(|error| {
            let kind = value["do"].as_str().unwrap_or("?");
            let error = error.to_string();
            // The list of all kinds that are known helps nobody.
            match error.starts_with("unknown variant") {
                true => format!("step `{kind}`"),
                false => format!("step `{kind}`: {error}"),
            }
        })
    }
}

/// A service as `show` lists it: its line, and its servers in the kernel's order, each with weight,
/// active and inactive.
pub type Listed = (String, Vec<(String, i64, i64, i64)>);

/// A text under `/proc/net`.
#[derive(Debug, Deserialize)]
pub struct ProcText {
    /// Its whole path.
    pub file: String,
    pub text: String,
}

/// A sysctl that was tried out.
#[derive(Debug, Deserialize)]
pub struct SysctlProbe {
    pub name: String,
    pub default: String,
    /// Permissions, as Python writes an octal number.
    pub mode: String,
    /// What was written, what was said if it was refused, and what stood there then.
    pub writes: Vec<(String, Option<String>, String)>,
}

/// A call of ipvsadm and what it said.
#[derive(Debug, Deserialize)]
pub struct Call {
    pub args: Vec<String>,
    #[serde(default)]
    pub stdin: String,
    pub rc: u8,
    #[serde(default)]
    pub out: String,
    #[serde(default)]
    pub err: String,
}

/// Where a frame goes in or comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Client, Side::Server];
}

/// A frame injected, and what came of it.
#[derive(Debug, Deserialize)]
pub struct Stimulus {
    pub side: Side,
    #[serde(deserialize_with = "hex")]
    pub frame: Vec<u8>,
    pub out: Vec<FrameOut>,
    pub conns: Option<Vec<Entry>>,
    /// The entries of one client's port after it.
    pub entry: Option<EntriesOf>,
    /// Per server: weight, active, inactive.
    pub counts: Option<BTreeMap<String, (i64, i64, i64)>>,
    /// The number of answers differed between two recordings.
    #[serde(default)]
    pub unstable: bool,
}

/// A frame that came out.
#[derive(Debug, Deserialize)]
pub struct FrameOut {
    pub side: Side,
    #[serde(deserialize_with = "hex")]
    pub frame: Vec<u8>,
    /// What differs from boot to boot.
    #[serde(default)]
    pub volatile: Volatile,
}

/// What of an answer differs from boot to boot.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Volatile {
    /// Byte ranges, and perhaps the length.
    Parts(Vec<VolatilePart>),
    /// The length alone.
    #[serde(deserialize_with = "the_word_length")]
    Length(()),
}

impl Default for Volatile {
    fn default() -> Volatile {
        Volatile::Parts(Vec::new())
    }
}

/// One part of it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum VolatilePart {
    Range(usize, usize),
    #[serde(deserialize_with = "the_word_length")]
    Length(()),
}

/// The entries of one client's port.
#[derive(Debug, Deserialize)]
pub struct EntriesOf {
    /// Its address and port.
    pub client: String,
    pub rows: Vec<Entry>,
}

/// A connection entry as the kernel lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub proto: Option<String>,
    pub client: String,
    #[serde(rename = "virtual")]
    pub virt: Option<String>,
    pub dest: String,
    pub state: String,
    pub expires: i64,
    /// Persistence engine and what it goes by.
    pub pe: Option<(String, String)>,
}

/// A scheduling decision.
#[derive(Debug, Deserialize)]
pub struct Decision {
    #[serde(flatten)]
    pub ends: Ends,
    /// Active and inactive of each server before; `null` for one that is not in the service.
    pub n: Vec<Option<[u32; 2]>>,
    /// Who was chosen.
    pub to: Option<String>,
    /// What was sent back, if nobody was.
    #[serde(default)]
    pub answer: Vec<String>,
}

/// Whose connection.
#[derive(Clone, Debug, Deserialize)]
pub struct Ends {
    /// The client.
    pub c: String,
    /// Whom it asks for, if that is not the service's VIP.
    pub d: Option<String>,
}

/// A packet of a sequence and how the connection stood afterwards: packet, state, expires, active,
/// inactive, fate.
#[derive(Debug, Deserialize)]
pub struct After(
    pub String,
    pub Option<String>,
    pub Option<i64>,
    pub i64,
    pub i64,
    pub Fate,
);

/// What became of a packet: a word, or the answers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Fate {
    Word(String),
    Answers(Vec<String>),
}

/// How many of many new connections went to each server; chance decides.
#[derive(Debug, Deserialize)]
pub struct Distribution {
    pub new_connections: u32,
    /// What each client does, in words.
    pub each: String,
    pub chosen: BTreeMap<String, u32>,
    pub not_forwarded: BTreeMap<String, u32>,
    /// Per server: weight, active, inactive.
    pub counts: BTreeMap<String, (i64, i64, i64)>,
}

fn the_word_length<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    use serde::de::Error;
    match String::deserialize(deserializer)?.as_str() {
        "length" => Ok(()),
        other => Err(D::Error::custom(format!("`{other}` is not volatile"))),
    }
}

fn hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => Ok(digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()),
        _ => Err(D::Error::custom("a frame is an even number of hex digits")),
    }
}
