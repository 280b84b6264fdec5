package fault

import "testing"

func TestSaysWhy(t *testing.T) {
	const killed, ended = "--- 23:09:02.265 ended: signal: killed\n", "--- 23:09:01.415 ended: exit status 1\n"
	const warning, reason = "level=WARN msg=certificates\n", "level=ERROR msg=stopped error=\"log.db: checksum error\"\n"
	for name, c := range map[string]struct {
		log  string
		want bool
	}{
		"names it":                       {killed + warning + reason + ended, true},
		"names it before a killed start": {killed + warning + reason + ended + warning + killed, true},
		"does not name it":               {killed + warning + ended, false},
		"names it too early":             {reason + warning + ended, false},
		"was killed":                     {reason + killed, false},
	} {
		if got := saysWhy(c.log, "log.db"); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
