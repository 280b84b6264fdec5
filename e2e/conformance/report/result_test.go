package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const sampleReport = `[{"SpecReports":[
 {"LeafNodeType":"SynchronizedBeforeSuite","State":"passed"},
 {"ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeType":"It","LeafNodeText":"should run [Conformance]","State":"passed","RunTime":2000000000},
 {"ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeType":"It","LeafNodeText":"should stop [Conformance]","State":"timedout","Failure":{"Message":"waited too long\nfor it"}},
 {"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeType":"It","LeafNodeText":"should serve [Conformance]","State":"skipped"},
 {"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeType":"It","LeafNodeText":"is odd","State":"skipped"},
 {"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeType":"It","LeafNodeText":"is even","State":"passed"}
]}]`

func parsed(t *testing.T, report string) []Spec {
	t.Helper()
	specs, err := parse([]byte(report))
	if err != nil {
		t.Fatal(err)
	}
	return specs
}

func TestSummaryCountsBySIG(t *testing.T) {
	s := summarize(parsed(t, sampleReport), []string{"[sig-node] Pods should run [Conformance]"})
	if got := *s.BySIG["sig-node"]; got != (Count{Passed: 1, Failed: 1}) {
		t.Errorf("sig-node: %+v", got)
	}
	if got := *s.BySIG["sig-network"]; got != (Count{Passed: 1, NotRun: 1}) {
		t.Errorf("sig-network: %+v", got)
	}
	if err := s.err(); err != nil {
		t.Errorf("a failure that the record does not promise failed the run: %v", err)
	}
	var out bytes.Buffer
	s.print(&out)
	for _, want := range []string{"should stop [Conformance] (0s)\n        waited too long\n", "passed  failed  not run"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
}

func TestRecordedTestThatFailsFailsTheRun(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"[sig-node] Pods should stop [Conformance]", "passed before and failed now"},
		{"[sig-node] Pods should fly [Conformance]", "not a test of the suite"},
	} {
		err := summarize(parsed(t, sampleReport), []string{c.name}).err()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	// What the run left out says nothing about the record.
	if err := summarize(parsed(t, sampleReport), []string{"[sig-network] Services should serve [Conformance]"}).err(); err != nil {
		t.Errorf("a recorded test that was not run failed the run: %v", err)
	}
}

func TestSuiteThatCannotStartFailsTheRun(t *testing.T) {
	s := summarize(parsed(t, `[{"SpecReports":[{"LeafNodeType":"SynchronizedBeforeSuite","State":"failed","Failure":{"Message":"no nodes"}}]}]`), nil)
	if err := s.err(); err == nil || !strings.Contains(err.Error(), "no nodes") {
		t.Errorf("got %v", err)
	}
	if _, err := parse([]byte(`[]`)); err == nil {
		t.Error("an empty report was taken for a run")
	}
	if _, err := parse([]byte(`[{"Spec`)); err == nil {
		t.Error("a cut report was taken for a run")
	}
}

func TestRecordGrowsAndNeverShrinks(t *testing.T) {
	all, added := merge([]string{"z"}, parsed(t, sampleReport))
	if added != 1 || len(all) != 2 || all[0] != "[sig-node] Pods should run [Conformance]" || all[1] != "z" {
		t.Errorf("got %q, %d added", all, added)
	}
	file := filepath.Join(t.TempDir(), "passed.txt")
	if err := writeNames(file, all); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "[sig-node] Pods should run [Conformance]\nz\n" {
		t.Errorf("%q %v", data, err)
	}
	back, err := readNames(file)
	if err != nil || len(back) != 2 {
		t.Errorf("%q %v", back, err)
	}
}

func TestFocusSelectsTheNamesAlone(t *testing.T) {
	re := regexp.MustCompile(focusOf([]string{"[sig-node] Pods should run [Conformance]", "a.b"}))
	for name, want := range map[string]bool{
		"Kubernetes e2e suite [sig-node] Pods should run [Conformance]":        true,
		"Kubernetes e2e suite [sig-node] Pods should run [Conformance] [Slow]": false,
		"suite a.b": true,
		"suite axb": false,
	} {
		if re.MatchString(name) != want {
			t.Errorf("%s: selected %v", name, !want)
		}
	}
}
