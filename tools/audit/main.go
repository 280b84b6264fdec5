// Command audit checks what the project is about to ship: known vulnerabilities and licences of
// its modules and of the Go release, file modes, the capabilities granted by images and compose
// files, and that the tests named in SECURITY.md exist. It prints one line per check and per
// fault. The exit code is 1 if there is a fault.
//
// It must not use the network: the vulnerability database is a directory, and modules are read
// from the module cache.
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

// options are the paths of the inputs.
type options struct {
	root        string // root of the repository
	bin         string // directory of the built programs
	advisories  string // directory of the vulnerability database's OSV entries, one file each
	modified    string // when the database was last changed
	govulncheck string
	accepted    string // file of advisories that do not apply, with reasons
}

// check is one check. run returns a description of what it checked, and its faults.
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

// notChecked is returned by a check without input.
const notChecked = "not checked: there is no vulnerability database"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o := &options{}
	flag.StringVar(&o.root, "root", "..", "root of the repository")
	flag.StringVar(&o.bin, "bin", "../bin", "directory of the built programs")
	flag.StringVar(&o.advisories, "advisories", "", "directory of the vulnerability database's OSV entries; empty: do not check vulnerabilities")
	flag.StringVar(&o.modified, "modified", "", "time of the last change of the database (RFC 3339)")
	flag.StringVar(&o.govulncheck, "govulncheck", "govulncheck", "path of govulncheck")
	flag.StringVar(&o.accepted, "accepted", "", "file of accepted advisories, one per line: ID reason")
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
