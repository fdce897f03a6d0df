//! Every ipvsadm option once: its letter, its long name, whether it takes a value, and with which
//! command it may stand. And the scanner that finds options in words as popt does it: letters may be
//! bundled, a value may be attached or follow, plain words may stand anywhere.

/// An option or command word of ipvsadm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as its long option is")]
pub enum Opt {
    AddService,
    EditService,
    DeleteService,
    Clear,
    AddServer,
    EditServer,
    DeleteServer,
    List,
    Zero,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Help,
    Version,
    Tcp,
    Udp,
    Sctp,
    Mark,
    Ipv6,
    Scheduler,
    Persistent,
    Netmask,
    Engine,
    SchedFlags,
    Ops,
    RealServer,
    Gatewaying,
    Ipip,
    Masquerading,
    FullNat,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
    Weight,
    Upper,
    Lower,
    Numeric,
    Connection,
    Masqueraded,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    TunInfo,
    Sort,
    Nosort,
    Exact,
    McastInterface,
    SyncId,
    SyncMaxlen,
    McastGroup,
    McastPort,
    McastTtl,
}

/// Does an option take a value?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// No.
    Nothing,
    /// Yes, whatever the next word is.
    Value,
    /// The next word unless it begins with `-`.
    Maybe,
}

/// Long name, letter (`'\0'` for none), value.
pub type Row = (&'static str, char, Takes, Opt);

/// All options; `-l` and `-L` are one.
pub const OPTIONS: [Row; 60] = {
    use Opt::*;
    use Takes::{Maybe, Nothing, Value};
    [
        ("add-service", 'A', Nothing, AddService),
        ("edit-service", 'E', Nothing, EditService),
        ("delete-service", 'D', Nothing, DeleteService),
        ("clear", 'C', Nothing, Clear),
        ("add-server", 'a', Nothing, AddServer),
        ("edit-server", 'e', Nothing, EditServer),
        ("delete-server", 'd', Nothing, DeleteServer),
        ("list", 'L', Nothing, List),
        ("list", 'l', Nothing, List),
        ("zero", 'Z', Nothing, Zero),
        ("set", '\0', Nothing, Set),
        ("start-daemon", '\0', Value, StartDaemon),
        ("stop-daemon", '\0', Value, StopDaemon),
        ("restore", 'R', Nothing, Restore),
        ("save", 'S', Nothing, Save),
        ("help", 'h', Nothing, Help),
        ("version", 'v', Nothing, Version),
        ("tcp-service", 't', Value, Tcp),
        ("udp-service", 'u', Value, Udp),
        ("sctp-service", '\0', Value, Sctp),
        ("fwmark-service", 'f', Value, Mark),
        ("ipv6", '6', Nothing, Ipv6),
        ("scheduler", 's', Value, Scheduler),
        ("persistent", 'p', Maybe, Persistent),
        ("netmask", 'M', Value, Netmask),
        ("pe", '\0', Value, Engine),
        ("sched-flags", 'b', Value, SchedFlags),
        ("ops", 'o', Nothing, Ops),
        ("real-server", 'r', Value, RealServer),
        ("gatewaying", 'g', Nothing, Gatewaying),
        ("ipip", 'i', Nothing, Ipip),
        ("masquerading", 'm', Nothing, Masquerading),
        ("fullnat", 'F', Nothing, FullNat),
        ("tun-type", '\0', Value, TunType),
        ("tun-port", '\0', Value, TunPort),
        ("tun-nocsum", '\0', Nothing, TunNocsum),
        ("tun-csum", '\0', Nothing, TunCsum),
        ("tun-remcsum", '\0', Nothing, TunRemcsum),
        ("weight", 'w', Value, Weight),
        ("u-threshold", 'x', Value, Upper),
        ("l-threshold", 'y', Value, Lower),
        ("numeric", 'n', Nothing, Numeric),
        ("connection", 'c', Nothing, Connection),
        ("masqueraded", '\0', Nothing, Masqueraded),
        ("timeout", '\0', Nothing, Timeout),
        ("daemon", '\0', Nothing, Daemon),
        ("stats", '\0', Nothing, Stats),
        ("rate", '\0', Nothing, Rate),
        ("thresholds", '\0', Nothing, Thresholds),
        ("persistent-conn", '\0', Nothing, PersistentConn),
        ("tun-info", '\0', Nothing, TunInfo),
        ("sort", '\0', Nothing, Sort),
        ("nosort", '\0', Nothing, Nosort),
        ("exact", 'X', Nothing, Exact),
        ("mcast-interface", '\0', Value, McastInterface),
        ("syncid", '\0', Value, SyncId),
        ("sync-maxlen", '\0', Value, SyncMaxlen),
        ("mcast-group", '\0', Value, McastGroup),
        ("mcast-port", '\0', Value, McastPort),
        ("mcast-ttl", '\0', Value, McastTtl),
    ]
};

/// What the messages call an option. Several options can be one subject (`-t`, `-u`, `-f`). The order
/// is the order in which ipvsadm checks them, so that it complains about the same one first.
pub const SUBJECTS: [&str; 35] = [
    "numeric",
    "connection",
    "service-address",
    "scheduler",
    "persistent",
    "netmask",
    "real-server",
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "mcast-interface",
    "timeout",
    "daemon",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "ops",
    "pe",
    "sched-flags",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
    "tun-info",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
    "masqueraded",
];

/// Which commands exist, what messages call them, and what may stand with them.
pub struct Allowed {
    /// The command.
    pub command: Opt,
    /// Its name in messages.
    pub name: &'static str,
    /// Subjects that must be there.
    pub required: &'static [&'static str],
    /// Of these at most one.
    pub exclusive: &'static [&'static str],
    /// Subjects that may be there.
    pub optional: &'static [&'static str],
}

const SERVICE: &[&str] = &["service-address"];
const SERVICE_AND_REAL: &[&str] = &["service-address", "real-server"];
const SERVICE_PARTS: &[&str] = &[
    "scheduler",
    "persistent",
    "netmask",
    "ops",
    "pe",
    "sched-flags",
];
const REAL_PARTS: &[&str] = &[
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
];
const LIST_PARTS: &[&str] = &[
    "numeric",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "tun-info",
];
const LIST_KINDS: &[&str] = &[
    "connection",
    "service-address",
    "timeout",
    "daemon",
    "masqueraded",
];
const MASTER_PARTS: &[&str] = &[
    "mcast-interface",
    "syncid",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
];

/// The commands, as ipvsadm(8) describes them.
pub const COMMANDS: [Allowed; 14] = [
    row(Opt::AddService, "add-service", SERVICE, &[], SERVICE_PARTS),
    row(
        Opt::EditService,
        "edit-service",
        SERVICE,
        &[],
        SERVICE_PARTS,
    ),
    row(Opt::DeleteService, "delete-service", SERVICE, &[], &[]),
    row(Opt::Clear, "flush", &[], &[], &[]),
    row(Opt::List, "list", &[], LIST_KINDS, LIST_PARTS),
    row(
        Opt::AddServer,
        "add-server",
        SERVICE_AND_REAL,
        &[],
        REAL_PARTS,
    ),
    row(
        Opt::EditServer,
        "edit-server",
        SERVICE_AND_REAL,
        &[],
        REAL_PARTS,
    ),
    row(
        Opt::DeleteServer,
        "delete-server",
        SERVICE_AND_REAL,
        &[],
        &[],
    ),
    row(Opt::Set, "set", &[], &[], &[]),
    row(Opt::StartDaemon, "start-daemon", &[], &[], MASTER_PARTS),
    row(Opt::StopDaemon, "stop-daemon", &[], &[], &["syncid"]),
    row(Opt::Restore, "restore", &[], &[], &[]),
    row(Opt::Save, "save", &[], &[], &["numeric"]),
    row(Opt::Zero, "zero", &[], &[], SERVICE),
];

const fn row(
    command: Opt,
    name: &'static str,
    required: &'static [&'static str],
    exclusive: &'static [&'static str],
    optional: &'static [&'static str],
) -> Allowed {
    Allowed {
        command,
        name,
        required,
        exclusive,
        optional,
    }
}

impl Opt {
    /// Is it an addition of ours, which ipvsadm does not have?
    pub const fn is_ours(self) -> bool {
        matches!(self, Opt::FullNat | Opt::Masqueraded)
    }

    /// Its row in the table of what may stand with a command; `None` if it is no command.
    pub fn as_command(self) -> Option<&'static Allowed> {
        COMMANDS.iter().find(|allowed| allowed.command == self)
    }

    /// Its number in `SUBJECTS`; `None` for commands and for what is never checked (`-6`, `--sort`).
    pub fn subject(self) -> Option<usize> {
        let name = match self {
            Opt::Tcp | Opt::Udp | Opt::Sctp | Opt::Mark => "service-address",
            Opt::Gatewaying | Opt::Ipip | Opt::Masquerading | Opt::FullNat => "forwarding-method",
            _ => OPTIONS.iter().find(|row| row.3 == self)?.0,
        };
        SUBJECTS.iter().position(|subject| *subject == name)
    }
}

/// What the scanner found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// An option and its value.
    Option {
        /// Which.
        opt: Opt,
        /// Its value, if it has one.
        value: Option<&'a str>,
        /// Number of the last word it used: that of its value if that is a word of its own.
        word: usize,
    },
    /// A word that is no option.
    Plain {
        /// Its number.
        word: usize,
    },
    /// A word that cannot be understood; scanning ends.
    Bad {
        /// Its number.
        word: usize,
        /// popt's reason.
        why: &'static str,
    },
}

/// Walks over words as popt does.
pub struct Scanner<'a> {
    words: &'a [&'a str],
    next: usize,
    bundle: Option<(usize, &'a str)>,
    only_plain: bool,
    strict: bool,
}

const UNKNOWN: &str = "unknown option";
const NO_VALUE: &str = "missing argument";
const UNWANTED_VALUE: &str = "option does not take an argument";

impl<'a> Scanner<'a> {
    /// A scanner before the first of `words` (the program's name is not one of them).
    pub fn new(words: &'a [&'a str]) -> Scanner<'a> {
        Scanner {
            words,
            next: 0,
            bundle: None,
            only_plain: false,
            strict: false,
        }
    }

    /// One that knows ipvsadm's own options only.
    pub fn strict(words: &'a [&'a str]) -> Scanner<'a> {
        Scanner {
            strict: true,
            ..Scanner::new(words)
        }
    }

    fn knows(&self, row: &Row) -> bool {
        !(self.strict && row.3.is_ours())
    }

    fn long(&mut self, word: usize, text: &'a str) -> Token<'a> {
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let row = OPTIONS.iter().find(|row| row.0 == name && self.knows(row));
        match row {
            Some((_, _, takes, opt)) => self.valued(word, *opt, *takes, attached),
            None => Token::Bad { word, why: UNKNOWN },
        }
    }

    fn letter(&mut self, word: usize, letters: &'a str) -> Token<'a> {
        let mut chars = letters.chars();
        let letter = chars.next().expect("a bundle is never empty");
        let rest = chars.as_str();
        let named = |row: &&Row| row.1 == letter && letter != '\0' && self.knows(row);
        let row = OPTIONS.iter().find(named);
        let Some((_, _, takes, opt)) = row else {
            return Token::Bad { word, why: UNKNOWN };
        };
        if *takes == Takes::Nothing && !rest.starts_with('=') {
            self.bundle = (!rest.is_empty()).then_some((word, rest));
            return self.valued(word, *opt, *takes, None);
        }
        let attached = (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest));
        self.valued(word, *opt, *takes, attached)
    }

    fn valued(
        &mut self,
        word: usize,
        opt: Opt,
        takes: Takes,
        attached: Option<&'a str>,
    ) -> Token<'a> {
        let following = self.words.get(self.next).copied();
        let (value, word) = match (takes, attached, following) {
            (Takes::Nothing, Some(_), _) => {
                let why = UNWANTED_VALUE;
                return Token::Bad { word, why };
            }
            (Takes::Nothing, None, _) => (None, word),
            (_, Some(value), _) => (Some(value), word),
            (Takes::Value, None, None) => {
                let why = NO_VALUE;
                return Token::Bad { word, why };
            }
            (Takes::Maybe, None, None) => (None, word),
            (Takes::Maybe, None, Some(next)) if next.starts_with('-') => (None, word),
            (_, None, Some(next)) => {
                self.next += 1;
                (Some(next), self.next - 1)
            }
        };
        Token::Option { opt, value, word }
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if let Some((word, letters)) = self.bundle.take() {
            return Some(self.letter(word, letters));
        }
        let word = self.next;
        let text = *self.words.get(word)?;
        self.next += 1;
        if self.only_plain || !text.starts_with('-') || text == "-" {
            return Some(Token::Plain { word });
        }
        if text == "--" {
            self.only_plain = true;
            return self.next();
        }
        Some(match text.strip_prefix("--") {
            Some(long) => self.long(word, long),
            None => self.letter(word, &text[1..]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan<'a>(words: &'a [&'a str]) -> Vec<Token<'a>> {
        let mut tokens = Vec::new();
        for token in Scanner::new(words) {
            tokens.push(token);
            if matches!(token, Token::Bad { .. }) {
                break;
            }
        }
        tokens
    }

    fn option<'a>(opt: Opt, value: Option<&'a str>, word: usize) -> Token<'a> {
        Token::Option { opt, value, word }
    }

    #[test]
    fn every_subject_has_an_option_and_every_allowed_name_is_a_subject() {
        for (number, _) in SUBJECTS.iter().enumerate() {
            let has_one = OPTIONS.iter().any(|row| row.3.subject() == Some(number));
            assert!(has_one, "{}", SUBJECTS[number]);
        }
        for allowed in &COMMANDS {
            for list in [allowed.required, allowed.exclusive, allowed.optional] {
                for name in list {
                    assert!(SUBJECTS.contains(name), "{name}");
                }
            }
        }
    }

    #[test]
    fn letters_bundle_and_values_attach() {
        let bundled = [option(Opt::List, None, 0), option(Opt::Numeric, None, 0)];
        assert_eq!(scan(&["-Ln"]), bundled);
        let marked = [
            option(Opt::List, None, 0),
            option(Opt::Numeric, None, 0),
            option(Opt::Mark, Some("oo"), 0),
        ];
        assert_eq!(scan(&["-Lnfoo"]), marked);
        for words in [vec!["-w=2"], vec!["-w2"], vec!["--weight=2"]] {
            assert_eq!(scan(&words), [option(Opt::Weight, Some("2"), 0)]);
        }
        assert_eq!(scan(&["-w", "-1"]), [option(Opt::Weight, Some("-1"), 1)]);
    }

    #[test]
    fn persistence_takes_the_next_word_unless_it_is_an_option() {
        let opt = Opt::Persistent;
        assert_eq!(scan(&["-p", "60"]), [option(opt, Some("60"), 1)]);
        assert_eq!(scan(&["-p", ""]), [option(opt, Some(""), 1)]);
        assert_eq!(scan(&["-p"]), [option(opt, None, 0)]);
        let dash = [option(opt, None, 0), Token::Plain { word: 1 }];
        assert_eq!(scan(&["-p", "-"]), dash);
        assert_eq!(scan(&["-p", "--"]), [option(opt, None, 0)]);
    }

    #[test]
    fn bad_words_are_named_whole() {
        let bad = |word, why| Some(Token::Bad { word, why });
        assert_eq!(scan(&["-Lnq"]).pop(), bad(0, UNKNOWN));
        assert_eq!(scan(&["-L", "--numeri"]).pop(), bad(1, UNKNOWN));
        assert_eq!(scan(&["-A", "-t"]).pop(), bad(1, NO_VALUE));
        assert_eq!(scan(&["-L", "-n=3"]).pop(), bad(1, UNWANTED_VALUE));
        assert_eq!(scan(&["--list=5"]).pop(), bad(0, UNWANTED_VALUE));
        assert_eq!(scan(&["-Lü"]).pop(), bad(0, UNKNOWN));
    }

    #[test]
    fn plain_words_stand_anywhere() {
        let words = ["x", "-L", "-", "--", "-n"];
        let expected = [
            Token::Plain { word: 0 },
            option(Opt::List, None, 1),
            Token::Plain { word: 2 },
            Token::Plain { word: 4 },
        ];
        assert_eq!(scan(&words), expected);
    }
}
