package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Spec is one test's outcome.
type Spec struct {
	Name    string
	State   string
	Message string
	Took    time.Duration
}

// ran says whether the test was tried: a test that found on its own that the
// cluster is not its kind counts as not run.
func (s Spec) ran() bool { return s.State != "skipped" && s.State != "pending" }

// passed says whether the test was tried and succeeded.
func (s Spec) passed() bool { return s.State == "passed" }

// conformance says whether the test belongs to the conformance suite.
func (s Spec) conformance() bool { return strings.Contains(s.Name, "[Conformance]") }

var sigPattern = regexp.MustCompile(`\[(sig-[a-z-]+)\]`)

// sig is the special interest group that owns the test.
func (s Spec) sig() string {
	if m := sigPattern.FindStringSubmatch(s.Name); m != nil {
		return m[1]
	}
	return "other"
}

// parse reads ginkgo's JSON report. Of a set-up or tear-down of the suite only
// failures are of interest, since no test ran without them.
func parse(data []byte) ([]Spec, error) {
	var reports []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeText            string
			LeafNodeType            string
			State                   string
			RunTime                 time.Duration
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		return nil, err
	}
	var specs []Spec
	for _, r := range reports {
		for _, sr := range r.SpecReports {
			s := Spec{State: sr.State, Message: firstLine(sr.Failure.Message), Took: sr.RunTime}
			switch {
			case sr.LeafNodeType == "It":
				s.Name = strings.Join(append(slices.Clone(sr.ContainerHierarchyTexts), sr.LeafNodeText), " ")
			case sr.State == "passed" || sr.State == "skipped" || sr.State == "":
				continue
			default:
				s.Name = sr.LeafNodeType
			}
			specs = append(specs, s)
		}
	}
	if len(specs) == 0 {
		return nil, errors.New("the report names no test")
	}
	return specs, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// Count is one SIG's line.
type Count struct{ Passed, Failed, NotRun int }

// Summary is what a run comes to.
type Summary struct {
	BySIG  map[string]*Count
	Failed []Spec
	// Broken passed before and failed now.
	Broken []string
	// Unknown stand in the record but not in the suite.
	Unknown []string
}

// summarize counts by SIG. Tests that were not run count where they belong to
// the conformance suite: the suite's thousands of others say nothing.
func summarize(specs []Spec, known []string) Summary {
	s := Summary{BySIG: map[string]*Count{}}
	states := make(map[string]Spec, len(specs))
	for _, sp := range specs {
		states[sp.Name] = sp
		if !sp.ran() && !sp.conformance() {
			continue
		}
		c := s.BySIG[sp.sig()]
		if c == nil {
			c = &Count{}
			s.BySIG[sp.sig()] = c
		}
		switch {
		case sp.passed():
			c.Passed++
		case sp.ran():
			c.Failed++
			s.Failed = append(s.Failed, sp)
		default:
			c.NotRun++
		}
	}
	slices.SortFunc(s.Failed, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range known {
		switch sp, ok := states[name]; {
		case !ok:
			s.Unknown = append(s.Unknown, name)
		case sp.ran() && !sp.passed():
			s.Broken = append(s.Broken, name)
		}
	}
	return s
}

func (s Summary) print(w io.Writer) {
	for _, f := range s.Failed {
		fmt.Fprintf(w, "FAILED  %s (%.0fs)\n        %s\n", f.Name, f.Took.Seconds(), f.Message)
	}
	if len(s.Failed) > 0 {
		fmt.Fprintln(w)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "SIG\tpassed\tfailed\tnot run\t")
	var all Count
	for _, sig := range slices.Sorted(maps.Keys(s.BySIG)) {
		c := s.BySIG[sig]
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t\n", sig, c.Passed, c.Failed, c.NotRun)
		all.Passed, all.Failed, all.NotRun = all.Passed+c.Passed, all.Failed+c.Failed, all.NotRun+c.NotRun
	}
	fmt.Fprintf(t, "all\t%d\t%d\t%d\t\n", all.Passed, all.Failed, all.NotRun)
	t.Flush()
}

// err is the run's verdict: only what the record promises can fail it, and a
// suite that could not be set up.
func (s Summary) err() error {
	var lines []string
	for _, name := range s.Broken {
		lines = append(lines, "passed before and failed now: "+name)
	}
	for _, name := range s.Unknown {
		lines = append(lines, "recorded, but not a test of the suite: "+name)
	}
	for _, f := range s.Failed {
		if f.sig() == "other" && !f.conformance() && strings.Contains(f.Name, "Suite") {
			lines = append(lines, "the suite's own "+f.Name+" failed: "+f.Message)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "\n        "))
}

// merge adds the conformance tests that passed to the record, sorted.
func merge(known []string, specs []Spec) (all []string, added int) {
	set := make(map[string]bool, len(known))
	for _, name := range known {
		set[name] = true
	}
	for _, sp := range specs {
		if sp.passed() && sp.conformance() && !set[sp.Name] {
			set[sp.Name] = true
			added++
		}
	}
	return slices.Sorted(maps.Keys(set)), added
}

// focusOf is a regular expression that matches exactly the names. Ginkgo matches
// it against the suite's description and the name, so only the end is anchored.
func focusOf(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return "(" + strings.Join(quoted, "|") + ")$"
}

func readNames(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" {
			names = append(names, line)
		}
	}
	return names, nil
}

func writeNames(file string, names []string) error {
	return os.WriteFile(file, []byte(strings.Join(names, "\n")+"\n"), 0o644)
}
