//! How `ulvs trace` tells ten connections under each of the fourteen schedulers. The texts are kept in
//! `stories/SCHEDULER.txt` and are there to be read: each has its rules on top, and every choice in it
//! shall explain itself.
//!
//! `ULVS_STORIES=write cargo nextest run --test trace stories` writes them anew; read what changed.

use std::fmt::Write;
use std::path::Path;

use super::{CLIENT_MAC, OUTSIDE, Place, pcapng, tcp, text, told};

/// The texts.
const STORIES: &str = "tests/trace/stories";

/// The VIP of most schedulers.
const VIP: [u8; 4] = [1, 2, 3, 1];

/// A service and its real servers. Those that look at the target take all of a mark.
struct Scene {
    scheduler: &'static str,
    service: &'static str,
    /// Flags of ipvsadm behind each real server.
    servers: &'static [&'static str],
}

const fn scene(
    scheduler: &'static str,
    service: &'static str,
    servers: &'static [&'static str],
) -> Scene {
    Scene {
        scheduler,
        service,
        servers,
    }
}

const TO_VIP: &str = "-t 1.2.3.1:80";
const TO_MARK: &str = "-f 1";

const SCENES: [Scene; 14] = [
    // One that is quiesced, and one that is full after two.
    scene("rr", TO_VIP, &["-w 1", "-w 0", "-w 1 -x 2", "-w 1"]),
    scene("wrr", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
    scene("lc", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
    scene("wlc", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
    scene("lblc", TO_MARK, &["-w 2", "-w 2", "-w 2"]),
    scene("lblcr", TO_MARK, &["-w 2", "-w 2", "-w 2"]),
    scene("dh", TO_MARK, &["-w 0", "-w 1", "-w 1"]),
    scene("sh -b sh-fallback", TO_VIP, &["-w 2 -x 3", "-w 1", "-w 1"]),
    scene("sed", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
    scene("nq", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
    scene("fo", TO_VIP, &["-w 3 -x 4", "-w 2", "-w 2"]),
    scene("ovf", TO_VIP, &["-w 4", "-w 2", "-w 1"]),
    scene("mh -b mh-fallback", TO_VIP, &["-w 2 -x 3", "-w 1", "-w 1"]),
    scene("twos", TO_VIP, &["-w 3", "-w 2", "-w 1"]),
];

impl Scene {
    fn name(&self) -> &str {
        self.scheduler.split(' ').next().expect("a name")
    }

    fn rules(&self) -> String {
        let mut rules = format!("-A {} -s {}\n", self.service, self.scheduler);
        for (number, flags) in (11..).zip(self.servers) {
            let port = if self.service == TO_VIP { ":8080" } else { "" };
            let server = format!("-r 192.168.1.{number}{port} -m {flags}");
            writeln!(rules, "-a {} {server}", self.service).expect("a string takes all");
        }
        rules
    }

    /// Ten connections; the first and the second have come to their end when the sixth and the eighth
    /// begin.
    fn capture(&self) -> Vec<u8> {
        let mut frames = Vec::new();
        for number in 1..=10 {
            frames.push((0, self.frame(number, "S")));
            match number {
                5 => frames.extend([(0, self.frame(1, "A")), (0, self.frame(1, "FA"))]),
                7 => frames.extend([(0, self.frame(2, "A")), (0, self.frame(2, "FA"))]),
                _ => {}
            }
        }
        pcapng(&frames)
    }

    /// A frame of a client's connection: four clients; at a mark, three targets, one of them wanted
    /// most.
    fn frame(&self, number: u8, flags: &str) -> Vec<u8> {
        let client = [203, 0, 113, number % 4 + 1];
        let target = match (self.service, number) {
            (TO_VIP, _) => VIP,
            (_, 5 | 9) => [198, 51, 100, 8],
            (_, 6 | 10) => [198, 51, 100, 9],
            (_, _) => [198, 51, 100, 7],
        };
        let from = (CLIENT_MAC, client, 40_000 + u16::from(number));
        tcp(from, (OUTSIDE, target, 80), flags, b"")
    }

    fn tell(&self) -> String {
        let place = Place::new(&format!("story-{}", self.name()));
        let capture = place.file("ten.pcapng", self.capture());
        let rules = place.file("rules", self.rules());
        let mut words = vec![text(&capture), "--rules", text(&rules)];
        if self.service == TO_MARK {
            // No VIP says where the director stands.
            words.extend(["--mark", "1", "--public-mac", "02:00:00:00:01:01"]);
        }
        let told = told(&words).replace(text(&capture), "ten.pcapng");
        // The table's own order depends on the machine.
        let told = told.split("\nThe connections in the end").next();
        format!("{}\n{}", self.rules(), told.unwrap_or_default())
    }
}

#[test]
fn stories_of_the_schedulers() {
    let names: Vec<&str> = SCENES.iter().map(Scene::name).collect();
    assert_eq!(names, ulvs::sched::NAMES, "a story for each scheduler");
    let write = std::env::var("ULVS_STORIES").is_ok_and(|word| word == "write");
    let mut wrong = String::new();
    for scene in SCENES {
        let path = Path::new(STORIES).join(format!("{}.txt", scene.name()));
        let told = scene.tell();
        if write {
            std::fs::write(&path, &told).expect("it can be written");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(line) = first_difference(&kept, &told) {
            let (kept, told) = (kept.lines().nth(line), told.lines().nth(line));
            let place = format!("{}:{}", path.display(), line + 1);
            wrong += &format!("{place}\n  kept {kept:?}\n  told {told:?}\n");
        }
    }
    assert!(
        wrong.is_empty(),
        "{wrong}if this is how it shall be told: ULVS_STORIES=write cargo nextest run --test trace \
         stories"
    );
}

fn first_difference(one: &str, other: &str) -> Option<usize> {
    if one == other {
        return None;
    }
    let lines = one.lines().zip(other.lines());
    let same = lines.take_while(|(one, other)| one == other).count();
    Some(same)
}
