//! What `ipvsadm -h` prints.

/// The usage of the ipvsadm personality, called as `program`.
pub fn text(program: &str) -> String {
    format!("{program}: the virtual services of a running ulvs director\n\n{USAGE}")
}

const USAGE: &str = "\
Services:
  -A|-E SERVICE [-s SCHEDULER] [-p [SECONDS]] [-M MASK] [-b FLAGS] [--pe ENGINE] [-o]
                                add or change a virtual service
  -D SERVICE                    delete it with its real servers
  -C                            delete all
Real servers:
  -a|-e SERVICE -r SERVER [-g|-i|-m|-F] [-w WEIGHT] [-x UPPER] [-y LOWER] [TUNNEL]
                                add or change a real server
  -d SERVICE -r SERVER          delete it
Looking:
  -L [SERVICE] [-n] [COLUMNS]   list services and real servers (also without any word)
  -L -c [-n]                    list connections
  -L --masqueraded [-n]         list connections of masqueraded hosts (not in ipvsadm)
  -L --timeout | --daemon       show timeouts, sync daemons
  -Z [SERVICE]                  zero the counters
Keeping:
  -S [-n]                       print everything as rules
  -R                            do the rules on standard input
  --set TCP TCPFIN UDP          set timeouts in seconds; 0 leaves one as it is
  --start-daemon|--stop-daemon master|backup
                                connection synchronisation
  -h, -v                        this text; the version of ipvsadm this follows

SERVICE is one of
  -t, --tcp-service HOST:PORT   -u, --udp-service HOST:PORT   --sctp-service HOST:PORT
  -f, --fwmark-service MARK     a firewall mark; with -6, --ipv6 behind it for IPv6

  -s, --scheduler NAME          rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos (wlc)
  -p, --persistent [SECONDS]    keep a client at its real server (360)
  -M, --netmask MASK            which clients count as one: IPv4 mask or IPv6 prefix length
  -b, --sched-flags LIST        sh-fallback,sh-port  mh-fallback,mh-port  flag-1,flag-2,flag-3
      --pe NAME                 persistence engine: sip
  -o, --ops                     one-packet scheduling (UDP)

  -r, --real-server HOST[:PORT]
  -g, --gatewaying              direct routing (the default)
  -i, --ipip                    tunnelling
  -m, --masquerading            network address translation
  -F, --fullnat                 translation of both ends, from [fullnat] (not in ipvsadm)
  -w, --weight N                share of new connections (1); 0 gives no new ones
  -x, --u-threshold N           at this many connections the server gets no more (0: no limit)
  -y, --l-threshold N           below this many it gets connections again
TUNNEL, with -i:
      --tun-type ipip|gue|gre   --tun-port PORT (gue)
      --tun-nocsum, --tun-csum, --tun-remcsum

COLUMNS:
      --stats, --rate           connections, packets, bytes: so far, per second
  -X, --exact                   whole numbers
      --thresholds, --persistent-conn, --tun-info
      --nosort                  in the engine's order
  -n, --numeric                 no names

Sync daemons: --mcast-interface NAME --syncid ID --sync-maxlen BYTES --mcast-group ADDRESS
              --mcast-port PORT --mcast-ttl TTL
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options::OPTIONS;

    #[test]
    fn every_option_is_told() {
        let text = text("ipvsadm");
        for (long, letter, ..) in OPTIONS {
            let told = text.contains(&format!("--{long}")) || text.contains(&format!("-{letter}"));
            assert!(told || long == "sort", "--{long}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100));
    }
}
