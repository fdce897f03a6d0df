//! What stands in anybody's notes, typed as it stands in the director of a kept lab.

use super::Place;

/// Two services of an old guide: a web service, and one of FTP.
const TYPED: &str = "\
ipvsadm -A -t 66.199.240.50:80 -s wlc
ipvsadm -a -t 66.199.240.50:80 -r 10.0.0.100:80 -m
ipvsadm -a -t 66.199.240.50:80 -r 10.0.0.101:80 -m -w 2
ipvsadm -A -t 66.199.240.50:21 -s wlc
ipvsadm -a -t 66.199.240.50:21 -r 10.0.0.100:21 -m -w 2
ipvsadm -a -t 66.199.240.50:21 -r 10.0.0.101:21 -m
ipvsadm -a -t 66.199.240.50:21 -r 10.0.0.102:21 -m
ipvsadm -L -n
";
/// What the last of them lists of these services.
const LISTED: &str = "
TCP  66.199.240.50:21 wlc
  -> 10.0.0.100:21                Masq    2      0          0         
  -> 10.0.0.101:21                Masq    1      0          0         
  -> 10.0.0.102:21                Masq    1      0          0         
TCP  66.199.240.50:80 wlc
  -> 10.0.0.100:80                Masq    1      0          0         
  -> 10.0.0.101:80                Masq    2      0          0         
";
/// Everything by itself, saved, gone, back again.
const THERE_AND_BACK: &str = "\
set -e
rules=$(ipvsadm-save -n)
ipvsadm -C
test -z \"$(ipvsadm-save -n)\"
echo \"$rules\" | ipvsadm-restore
test \"$(ipvsadm-save -n)\" = \"$rules\"
";

#[test]
fn words_of_old_guides_work_as_they_stand() {
    let place = Place::new();
    place.fine(&["nat", "--requests", "1", "--keep"]);
    let typed = |words: &str| place.fine(&["exec", "director", "--", "sh", "-ec", words]);
    let said = typed(TYPED);
    assert!(said.contains(LISTED), "{said}");
    typed(THERE_AND_BACK);
    place.fine(&["down"]);
    place.assert_empty();
}
