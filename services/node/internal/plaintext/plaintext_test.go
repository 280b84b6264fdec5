package plaintext

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for _, c := range []struct {
		name, in string
		limit    int
		want     string
	}{
		{"printable text stays", "größer\t€ �\n", 100, "größer\t€ �\n"},
		{"escape sequences", "a\x1b[2J\x07b\r\x7f", 100, `a\x1b[2J\ab\r\x7f`},
		{"C1 controls", "a\u009b31m", 100, `a\u009b31m`},
		{"reordering", "a\u202eb\u2066c", 100, `a\u202eb\u2066c`},
		{"invalid UTF-8", "a\xff\xfeb", 100, "a��b"},
		{"cut", "0123456789", 8, "01234..."},
		{"as long as allowed", "01234567", 8, "01234567"},
		{"cut between characters", "€€€€", 8, "€..."},
		{"cut after escaping", "\x1b\x1b\x1b\x1b", 8, `\x1b\...`},
		{"tiny limit", "abcdef", 2, "..."},
	} {
		got := Clean(c.in, c.limit)
		if got != c.want || !utf8.ValidString(got) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := Clean(strings.Repeat("\x1b", 1<<20), 64); len(got) > 64 {
		t.Errorf("%d bytes", len(got))
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[0m\xff", 10)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(3, min(limit, 4096))
		got := Clean(s, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\x07\r\x00\u009b\u202e") {
			t.Errorf("Clean(%q, %d) = %q", s, limit, got)
		}
		if again := Clean(got, limit); again != got {
			t.Errorf("Clean is not idempotent: %q, then %q", got, again)
		}
	})
}
