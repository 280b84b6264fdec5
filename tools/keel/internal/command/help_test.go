package command

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keelson.dev/tools/keel/internal/cluster"
)

// visible returns the verbs that help shows, recursively.
func visible(verb *cobra.Command) (out []*cobra.Command) {
	for _, v := range verb.Commands() {
		if !v.Hidden {
			out = append(append(out, v), visible(v)...)
		}
	}
	return out
}

// pflag shows the first word in backquotes as the type of a flag. A quoted command would be
// shown as a type.
func TestFlagsNameTheirTypes(t *testing.T) {
	for _, verb := range visible((&env{out: io.Discard, err: io.Discard}).root()) {
		verb.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			kind, _ := pflag.UnquoteUsage(f)
			if strings.ContainsAny(kind, " ") || kind == "string" || kind == "strings" {
				t.Errorf("%s --%s has the type %q", verb.CommandPath(), f.Name, kind)
			}
		})
	}
}

// Help must not show two defaults, such as "(default 3 for a new cluster) (default -1)".
func TestHelpShowsOneDefault(t *testing.T) {
	for _, verb := range visible((&env{out: io.Discard, err: io.Discard}).root()) {
		for line := range strings.Lines(verb.LocalFlags().FlagUsages()) {
			if strings.Count(line, "(default") > 1 {
				t.Errorf("%s: %s", verb.CommandPath(), line)
			}
		}
	}
}

func TestMainVerbsHaveExamples(t *testing.T) {
	verbs := visible((&env{out: io.Discard, err: io.Discard}).root())
	for _, want := range []string{
		"up", "down", "delete", "list", "status", "trace", "kubeconfig", "image load", "member add", "member remove",
		"member replace", "member recover", "snapshot save", "snapshot restore", "node token", "node join",
	} {
		i := slices.IndexFunc(verbs, func(v *cobra.Command) bool { return v.CommandPath() == "keel "+want })
		if i < 0 || !strings.HasPrefix(verbs[i].Example, "  ") || !strings.Contains(verbs[i].Example, "keel "+want) {
			t.Errorf("keel %s has no example", want)
		}
	}
}

func TestMissingFlagsAreUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"member", "recover"}, {"node", "join"}, {"pki"}} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), args, &out, &errs); code != 2 || !strings.Contains(errs.String(), "required flag") {
			t.Errorf("%v: exit %d, %s", args, code, errs.String())
		}
	}
}

func TestCompletion(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{{Name: "apiserver-0"}, {Name: "apiserver-4"}}
	})
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"member", "remove", ""}, "apiserver-0\napiserver-4\n:4\n"},
		{[]string{"member", "replace", ""}, "apiserver-0\napiserver-4\n:4\n"},
		{[]string{"member", "remove", "apiserver-0", ""}, ":4\n"},
		{[]string{"member", "recover", "--from", ""}, "apiserver-0\napiserver-4\n:4\n"},
		{[]string{"trace", ""}, "certificatesigningrequest/\nconfigmap/\ndeployment/\njob/\nnamespace/\nnode/\npersistentvolumeclaim/\npod/\nreplicaset/\nservice/\n:6\n"},
		{[]string{"trace", "pod/x"}, ":6\n"},
		{[]string{"image", "rm", ""}, ":4\n"}, // without nodes
		{[]string{"status", "-o", ""}, "json\n:4\n"},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"__complete", "--home", c.Home}, row.args...)
		if code := Run(t.Context(), args, &out, &errs); code != 0 || out.String() != row.want {
			t.Errorf("%v: exit %d, %q, want %q", row.args, code, out.String(), row.want)
		}
	}
}

func TestTablesWrapTheLastColumn(t *testing.T) {
	rows := [][]string{{"NAME", "REASON"}, {"apiserver-0", ""}, {"x", "etcd has lost the majority of its members since noon"}}
	for width, want := range map[int]string{
		0:  "NAME         REASON\napiserver-0\nx            etcd has lost the majority of its members since noon\n",
		40: "NAME         REASON\napiserver-0\nx            etcd has lost the majority\n             of its members since noon\n",
	} {
		var out bytes.Buffer
		if err := writeTable(&out, rows, width); err != nil || out.String() != want {
			t.Errorf("%d: %v\n%s", width, err, out.String())
		}
	}
}

// Processes that were running before are not counted as started.
func TestStartedCounts(t *testing.T) {
	for want, row := range map[string][2]map[string]int{
		"2 processes started":                    {{}, {"a": 1, "b": 2}},
		"1 process started, 1 already running":   {{"a": 1, "b": 9}, {"a": 1, "b": 2}},
		"0 processes started, 1 already running": {{"a": 1, "gone": 3}, {"a": 1}},
	} {
		if got := started(row[0], row[1]); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
