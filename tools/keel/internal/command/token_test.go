package command

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadToken(t *testing.T) {
	const good = "xyz123.00112233aabbccdd"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(good+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path, stdin string
		want        string // empty if an error is expected
	}{
		"a file":                   {file, "", good},
		"standard input":           {"-", good + "\n", good},
		"nothing":                  {"-", "", ""},
		"something else":           {"-", "secret", ""},
		"a token and more":         {"-", good + " x", ""},
		"more than is read":        {"-", strings.Repeat(" ", 2000) + good, ""},
		"no file":                  {file + "x", "", ""},
		"a file, input unread":     {file, "other", good},
		"capitals are not a token": {"-", strings.ToUpper(good), ""},
	} {
		got, err := readToken(test.path, strings.NewReader(test.stdin))
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err != nil && test.stdin != "" && strings.Contains(err.Error(), strings.TrimSpace(test.stdin)) {
			t.Errorf("%s: the error contains the input: %v", name, err)
		}
	}
}

// TestNoTokenInArguments checks that no command accepts a token as an argument, only a file
// that contains it.
func TestNoTokenInArguments(t *testing.T) {
	for _, args := range [][]string{
		{"node", "join", "--server", "x:1", "--ca-hash", "sha256:x", "--token", "xyz123.00112233aabbccdd"},
		{"node", "join", "--server", "x:1", "--ca-hash", "sha256:x"},
	} {
		var out, errs bytes.Buffer
		if code := Run(context.Background(), args, &out, &errs); code == 0 {
			t.Errorf("%v: exit code %d: %s", args, code, errs.String())
		}
		if strings.Contains(errs.String()+out.String(), "00112233aabbccdd") {
			t.Errorf("the output contains the token: %s", errs.String())
		}
	}
}

func TestTokenForANode(t *testing.T) {
	s := bootstrapSecret("abcdef.0123456789abcdef", time.Now(), nodeJoiners, "test")
	forNode(s, "n")
	if s.StringData["node-name"] != "n" || s.StringData["single-use"] != "true" || s.StringData["auth-extra-groups"] != nodeJoiners {
		t.Errorf("%v", s.StringData)
	}
}
