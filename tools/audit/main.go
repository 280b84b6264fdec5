// Command audit checks what the project ships before it is shipped: known
// vulnerabilities of the modules and the Go release, their licences, modes of files,
// the capabilities that images and compose files give away, and that the tests which
// SECURITY.md names are there. It prints a line per
// check and a line per fault, and exits with 1 if there is one.
//
// It must never ask the network: the vulnerability database is a directory, and
// modules are those in the module cache.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

// options are where everything lies.
type options struct {
	root        string // of the repository
	bin         string // the built programs
	advisories  string // OSV entries of the vulnerability database, a file each
	modified    string // when the database was changed last
	govulncheck string
	accepted    string // advisories that do not apply, with the reason
}

// check looks at one thing. It returns what it looked at, in words, and its faults.
type check struct {
	name string
	run  func(context.Context, *options) (looked string, faults []string, err error)
}

var checks = []check{
	{"vulnerabilities", vulnerabilities},
	{"licences", licences},
	{"secrets", secrets},
	{"modes", modes},
	{"capabilities", capabilities},
	{"doors", doors},
}

// notChecked is what a check says that had nothing to go by.
const notChecked = "not checked: there is no vulnerability database"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o := &options{}
	flag.StringVar(&o.root, "root", "..", "root of the repository")
	flag.StringVar(&o.bin, "bin", "../bin", "directory of the built programs")
	flag.StringVar(&o.advisories, "advisories", "", "directory of the vulnerability database's OSV entries; empty checks no vulnerabilities")
	flag.StringVar(&o.modified, "modified", "", "when the database was changed last (RFC 3339)")
	flag.StringVar(&o.govulncheck, "govulncheck", "govulncheck", "path of govulncheck")
	flag.StringVar(&o.accepted, "accepted", "", "file of accepted advisories, a line each: ID reason")
	flag.Parse()
	os.Exit(run(ctx, o, os.Stdout))
}

func run(ctx context.Context, o *options, out io.Writer) int {
	code := 0
	for _, c := range checks {
		began := time.Now()
		looked, faults, err := c.run(ctx, o)
		if err != nil {
			faults = append(faults, err.Error())
		}
		verdict := "ok"
		if looked == notChecked {
			verdict = "-"
		}
		if len(faults) > 0 {
			verdict, code = "FAILED", 1
		}
		fmt.Fprintf(out, "%-16s %-7s %s (%.1f s)\n", c.name, verdict, looked, time.Since(began).Seconds())
		for _, f := range faults {
			fmt.Fprintf(out, "  %s\n", f)
		}
	}
	return code
}
