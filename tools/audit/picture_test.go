package main

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// graph holds, for each box, the boxes that it imports.
type graph map[string]map[string]bool

func (g graph) box(name string) {
	if g[name] == nil {
		g[name] = map[string]bool{}
	}
}

func (g graph) arrow(from, to string) {
	g.box(from)
	g.box(to)
	if from != to {
		g[from][to] = true
	}
}

// reaches reports whether a path of at least two arrows leads from one box to another.
func (g graph) reaches(from, to string) bool {
	seen := map[string]bool{}
	var visit func(string) bool
	visit = func(box string) bool {
		for next := range g[box] {
			if next == to && box != from {
				return true
			}
			if !seen[next] {
				seen[next] = true
				if visit(next) {
					return true
				}
			}
		}
		return false
	}
	return visit(from)
}

// compare lists how a picture differs from the imports. The picture has an arrow for each
// import, except those that follow from a path of other arrows.
func compare(drawn, real graph) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for box := range real {
		if drawn[box] == nil {
			add("no box %s", box)
		}
		for to := range real[box] {
			if !drawn[box][to] && !real.reaches(box, to) {
				add("no arrow %s --> %s: it is imported", box, to)
			}
		}
	}
	for box := range drawn {
		if real[box] == nil {
			add("a box %s: there is no such package", box)
		}
		for to := range drawn[box] {
			switch {
			case !real[box][to]:
				add("an arrow %s --> %s: it is not imported", box, to)
			case real.reaches(box, to):
				add("an arrow %s --> %s: it follows from the others", box, to)
			}
		}
	}
	slices.Sort(faults)
	return faults
}

var (
	pictureBlock = regexp.MustCompile("(?s)```mermaid\n(.*?)```")
	pictureLabel = regexp.MustCompile(`^(\S+)\["([^"]+)"\]$`)
)

// picture reads the flowchart of a document. A box is named by its label, if it has one; a
// box of a subgraph is named by the subgraph's name, a colon and its own.
func picture(text string) (graph, error) {
	block := pictureBlock.FindStringSubmatch(text)
	if block == nil {
		return nil, fmt.Errorf("there is no mermaid block")
	}
	g, names, within := graph{}, map[string]string{}, ""
	name := func(text string) string {
		text = strings.TrimSpace(text)
		id, label := text, ""
		if m := pictureLabel.FindStringSubmatch(text); m != nil {
			id, label = m[1], m[2]
		}
		if label == "" {
			label = id
		}
		if names[id] == "" {
			if within != "" {
				label = within + ":" + label
			}
			names[id] = label
		}
		g.box(names[id])
		return names[id]
	}
	for _, line := range strings.Split(block[1], "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "flowchart ") || strings.HasPrefix(line, "%%"):
		case strings.HasPrefix(line, "subgraph "):
			within = name(strings.TrimPrefix(line, "subgraph "))
		case line == "end":
			within = ""
		default:
			from, to, _ := strings.Cut(line, " --> ")
			for _, f := range strings.Split(from, " & ") {
				f = name(f)
				if to == "" {
					continue
				}
				for _, t := range strings.Split(to, " & ") {
					g.arrow(f, name(t))
				}
			}
		}
	}
	return g, nil
}

// imports reads which modules of the workspace import each other, and which packages of the
// apiserver do. Packages below one of internal's own count as part of it; the program is
// main. Tests, and what only they import, are left out.
func imports(root string) (graph, error) {
	work, err := os.ReadFile(filepath.Join(root, "go.work"))
	if err != nil {
		return nil, err
	}
	var modules []string
	for _, m := range regexp.MustCompile(`(?m)^\s*\./(\S+)$`).FindAllStringSubmatch(string(work), -1) {
		modules = append(modules, m[1])
	}
	const apiserver = "services/apiserver"
	module := func(dir string) string {
		i := slices.IndexFunc(modules, func(m string) bool { return dir == m || strings.HasPrefix(dir, m+"/") })
		if i < 0 {
			return ""
		}
		return modules[i]
	}
	part := func(dir string) string {
		rest, inside := strings.CutPrefix(dir, apiserver+"/internal/")
		if !inside {
			return apiserver + ":main"
		}
		rest, _, _ = strings.Cut(rest, "/")
		return apiserver + ":" + rest
	}
	g := graph{}
	walk := func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || strings.HasPrefix(name, ".") && name != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			to, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), "keelson.dev/")
			if !ours {
				continue
			}
			from, into := module(dir), module(to)
			g.arrow(from, into)
			if from == apiserver && into == apiserver {
				g.arrow(part(dir), part(to))
			}
		}
		return nil
	}
	for _, m := range modules {
		g.box(m)
		if err := filepath.WalkDir(filepath.Join(root, m), walk); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// TestPicture holds the picture of ARCHITECTURE.md to what the code imports.
func TestPicture(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	drawn, err := picture(string(text))
	if err != nil {
		t.Fatalf("ARCHITECTURE.md: %v", err)
	}
	real, err := imports(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range compare(drawn, real) {
		t.Errorf("the picture in ARCHITECTURE.md has %s", fault)
	}
	if len(real) < 20 || len(real["services/apiserver:pipeline"]) == 0 {
		t.Errorf("only these packages were found: %q", slices.Sorted(maps.Keys(real)))
	}
}

func TestPictureDiffers(t *testing.T) {
	const document = "```mermaid\nflowchart TD\n  %% a comment\n  a --> b & c\n  b[\"modules/b\"] --> c\n  subgraph s[\"modules/s\"]\n    x --> y\n  end\n  s --> a\n```\n"
	drawn, err := picture(strings.Replace(document, "a --> b", "a --> b[\"modules/b\"]", 1))
	if err != nil {
		t.Fatal(err)
	}
	real := graph{}
	for _, arrow := range [][2]string{{"a", "modules/b"}, {"a", "c"}, {"modules/b", "c"}, {"modules/s:x", "modules/s:y"}, {"modules/s", "c"}, {"modules/s", "d"}} {
		real.arrow(arrow[0], arrow[1])
	}
	want := []string{
		"an arrow a --> c: it follows from the others",
		"an arrow modules/s --> a: it is not imported",
		"no arrow modules/s --> c: it is imported",
		"no arrow modules/s --> d: it is imported",
		"no box d",
	}
	if got := compare(drawn, real); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if _, err := picture("no picture"); err == nil {
		t.Error("a document without a picture is accepted")
	}
}
