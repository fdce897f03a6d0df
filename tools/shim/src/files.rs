//! The texts of `/proc/net/ip_vs*` as files of their own.

use std::ffi::CStr;

use ulvs::cli::proc;
use ulvs::config::Request;

use crate::director;

/// Where programs look for them.
const FOLDERS: [&str; 3] = ["/proc/net/", "/proc/self/net/", "/proc/thread-self/net/"];

/// Which of the files is it, if any?
pub fn name(path: &CStr) -> Option<&'static str> {
    let path = path.to_str().ok()?;
    let mut folders = FOLDERS.iter();
    let wanted = folders.find_map(|folder| path.strip_prefix(folder))?;
    proc::FILES.into_iter().find(|name| *name == wanted)
}

/// What stands in it now; `None` without a director.
pub fn text(name: &str) -> Option<String> {
    let mut ask = |request: Request| {
        director::ask(&request).map_err(|errno| format!("the director: errno {errno}"))
    };
    proc::text(name, &mut ask).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_files_are_ours() {
        assert_eq!(name(c"/proc/net/ip_vs_conn"), Some("ip_vs_conn"));
        assert_eq!(name(c"/proc/self/net/ip_vs"), Some("ip_vs"));
        for other in [c"/proc/net/ip_vs_other", c"/proc/net/tcp", c"ip_vs", c""] {
            assert_eq!(name(other), None);
        }
    }
}
