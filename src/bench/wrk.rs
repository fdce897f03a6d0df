//! wrk, the web load generator of Debian's package of that name: its words, and what it prints.

/// Connections at once.
const CONNECTIONS: u32 = 64;

/// What it said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Report {
    /// Answers that it got.
    pub requests: f64,
    /// Answers a second.
    pub per_second: f64,
    /// Answers that were no 200, and sockets that failed.
    pub errors: f64,
}

/// Its words; seconds are whole ones.
pub(super) fn words(target: &str, close: bool, window: f64) -> Vec<String> {
    let seconds = window.ceil().max(1.0);
    let mut words = vec![
        "wrk".to_string(),
        "-t1".to_string(),
        format!("-c{CONNECTIONS}"),
        format!("-d{seconds}s"),
    ];
    if close {
        words.extend(["-H", "Connection: close"].map(str::to_string));
    }
    words.push(format!("http://{target}/"));
    words
}

/// Reads what it printed.
///
/// # Errors
/// When it is not what wrk 4 prints, or nothing was answered; with the text.
pub(super) fn parse(text: &str) -> Result<Report, String> {
    let number = |line: Option<&str>| line.and_then(|text| text.trim().parse::<f64>().ok());
    let lines = || text.lines().map(str::trim);
    let rate = number(lines().find_map(|line| line.strip_prefix("Requests/sec:")));
    let requests = lines().find_map(|line| line.split_once(" requests in "));
    let requests = number(requests.map(|(count, _)| count));
    let mut errors = 0.0;
    if let Some(line) = lines().find_map(|line| line.strip_prefix("Socket errors:")) {
        // connect 0, read 3, write 0, timeout 0
        let counts = line
            .split(',')
            .filter_map(|part| part.split_whitespace().nth(1));
        errors += counts
            .filter_map(|count| count.parse::<f64>().ok())
            .sum::<f64>();
    }
    errors += number(lines().find_map(|line| line.strip_prefix("Non-2xx or 3xx responses:")))
        .unwrap_or(0.0);
    match (requests, rate) {
        (Some(requests), Some(per_second)) if requests > 0.0 => Ok(Report {
            requests,
            per_second,
            errors,
        }),
        (Some(_), Some(_)) => Err("wrk got no answer at all".to_string()),
        _ => Err(format!("wrk said something else: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Running 1s test @ http://1.2.3.1:80/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.32ms    1.01ms  24.07ms   97.95%
    Req/Sec    49.82k     3.97k   54.44k    90.00%
  49616 requests in 1.00s, 5.96MB read
  Socket errors: connect 1, read 20, write 0, timeout 3
  Non-2xx or 3xx responses: 100
Requests/sec:  49571.80
Transfer/sec:      5.96MB
";

    #[test]
    fn what_it_says_is_read() {
        let report = parse(TEXT).unwrap();
        assert_eq!(report.requests, 49_616.0);
        assert_eq!(report.per_second, 49_571.8);
        assert_eq!(report.errors, 124.0);
        assert!(parse("").is_err());
        let silent = TEXT.replace("49616 requests", "0 requests");
        assert!(parse(&silent).unwrap_err().contains("no answer"));
    }

    #[test]
    fn a_connection_each_is_asked_for() {
        let words = words("1.2.3.1:80", true, 0.4);
        assert!(words.contains(&"-d1s".to_string()));
        assert!(words.contains(&"Connection: close".to_string()));
    }
}
