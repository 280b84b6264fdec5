package why

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
)

// Draw writes an answer as text. clean is applied to every text that comes from the cluster; it
// removes what could control the terminal.
func Draw(out io.Writer, a *Answer, now time.Time, clean func(string) string) error {
	var b strings.Builder
	draw(&b, a, now, clean, 0)
	_, err := io.WriteString(out, b.String())
	return err
}

func draw(b *strings.Builder, a *Answer, now time.Time, clean func(string) string, depth int) {
	indent := strings.Repeat("  ", depth)
	prefix := ""
	if depth > 0 {
		prefix = "because "
	}
	fmt.Fprintf(b, "%s%s%s: %s  [%s]\n", indent, prefix, clean(a.Object.String()), clean(a.Cause), a.Code)
	for _, e := range a.Evidence {
		fmt.Fprintf(b, "%s  %-6s  %s%s\n", indent, e.Source, clean(e.Text), when(e, now))
	}
	for _, n := range a.Next {
		fmt.Fprintf(b, "%s  next    %s\n", indent, clean(n))
	}
	if a.Because != nil {
		draw(b, a.Because, now, clean, depth+1)
	}
}

func when(e Evidence, now time.Time) string {
	if e.Time.IsZero() {
		return ""
	}
	out := fmt.Sprintf("  (%s ago", now.Sub(e.Time.Time).Round(time.Second))
	if n := cmp.Or(e.Count, 1); n > 1 {
		out += fmt.Sprintf(", %d times", n)
	}
	return out + ")"
}
