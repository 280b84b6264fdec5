package command

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// An unknown verb is incorrect usage in every group, and a similar one is suggested.
func TestUnknownVerbsAreRefused(t *testing.T) {
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"upp"}, `unknown command "upp"`},
		{[]string{"member", "lst"}, `unknown command "lst" for "keel member"; did you mean list?`},
		{[]string{"snapshot", "frobnicate"}, `unknown command "frobnicate" for "keel snapshot"`},
		{[]string{"image", "laod", "x.tar"}, `unknown command "laod" for "keel image"; did you mean load?`},
		{[]string{"node", "frobnicate"}, `unknown command "frobnicate" for "keel node"`},
	} {
		var out, errs bytes.Buffer
		code := Run(t.Context(), append(row.args, "--home", t.TempDir()+"/none"), &out, &errs)
		if code != 2 || !strings.Contains(errs.String(), row.want) || out.Len() > 0 {
			t.Errorf("keel %s: exit %d, stdout %q, stderr %q; want 2 and %q", strings.Join(row.args, " "), code, out.String(), errs.String(), row.want)
		}
	}
}

// A group called without a verb lists its verbs.
func TestGroupsShowTheirVerbs(t *testing.T) {
	var out, errs bytes.Buffer
	if code := Run(t.Context(), []string{"member"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "replace") {
		t.Errorf("exit %d, %q %q", code, out.String(), errs.String())
	}
}

func TestVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := Run(t.Context(), []string{"version"}, &out, &errs); code != 0 || !strings.HasPrefix(out.String(), "keel ") || !strings.Contains(out.String(), kubernetesVersion) {
		t.Errorf("exit %d, %q %q", code, out.String(), errs.String())
	}
}

// refuseUnknown must not replace the action of a runnable command that has subcommands.
func TestRunnableGroupsStay(t *testing.T) {
	ran := false
	root := &cobra.Command{Use: "root"}
	group := &cobra.Command{Use: "group", Run: func(*cobra.Command, []string) { ran = true }}
	group.AddCommand(&cobra.Command{Use: "verb", Run: func(*cobra.Command, []string) {}})
	root.AddCommand(group)
	refuseUnknown(root)
	root.SetArgs([]string{"group"})
	if err := root.Execute(); err != nil || !ran {
		t.Errorf("%v, ran %t", err, ran)
	}
}

// A call without a required argument reports the correct usage.
func TestMissingArgumentsShowTheCall(t *testing.T) {
	var out, errs bytes.Buffer
	code := Run(t.Context(), []string{"member", "remove"}, &out, &errs)
	if want := "keel member remove NAME: expected 1 argument, got 0"; code != 2 || !strings.Contains(errs.String(), want) {
		t.Errorf("exit %d, %q; want 2 and %q", code, errs.String(), want)
	}
}
