// Command bench measures a Keelson apiserver, and a whole control plane with simulated nodes,
// from outside. It prints each figure next to that of Kubernetes 1.37 on a machine with two
// cores (see docs/figures.md).
//
//	bench --bin DIR [--against DIR] [--only NAME,…]
//
// Next to each figure is the CPU time that the apiserver spent per request, on which the
// clients on the same machine and its speed have little influence. With --against, the programs
// of another directory and those of --bin run alternately, three times each, and the lowest CPU
// times of both are compared.
//
// Everything runs on this machine, including the clients. Figures vary between machines:
// compare only ratios that were measured in one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// figure is one row of the table.
type figure struct {
	name string
	// kubernetes is the figure of Kubernetes, or 0 if there is none.
	kubernetes float64
	// floor and target are Keelson's own limits. less means that smaller is better.
	floor, target float64
	unit          string
	less          bool
	measure       func(ctx context.Context, b *bench) (float64, string, error)
}

var figures = []figure{
	{"start", 3050, 1000, 700, "ms", true, measureStart},
	{"rest-create", 586, 1200, 3000, "/s", false, restCreate},
	{"rest-get", 2021, 4000, 8000, "/s", false, restGet},
	{"rest-patch", 486, 1000, 3000, "/s", false, restPatch},
	{"rest-list-p50", 348, 250, 150, "ms", true, restList},
	{"rest-lease-renew", 1049, 0, 5000, "/s", false, restLease},
	{"rest-delete", 0, 0, 6000, "/s", false, restDelete},
	{"grpc-create", 0, 0, 9000, "/s", false, grpcCreate},
	{"grpc-commit", 0, 0, 15000, "/s", false, grpcCommit},
	{"grpc-get", 0, 0, 0, "/s", false, grpcGet},
	{"rest-watch-fanout", 30800, 0, 60000, "events/s", false, restWatch},
	{"grpc-watch-fanout", 0, 0, 100000, "events/s", false, grpcWatch},
	{"schedule-rest", 147, 500, 1500, "pods/s", false, scheduleREST},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bin := flag.String("bin", "bin", "directory of the programs to measure")
	against := flag.String("against", "", "directory of other programs whose CPU time per request to compare")
	only := flag.String("only", "", "names of figures, comma-separated (default: all)")
	flag.Parse()
	var err error
	if *against == "" {
		err = run(ctx, *bin, *only)
	} else {
		err = compare(ctx, *bin, *against, *only)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, only string) error {
	b, err := newBench(bin)
	if err != nil {
		return err
	}
	defer b.close()
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "FIGURE\tKEELSON\tSERVER CPU\tKUBERNETES 1.37\tRATIO\tFLOOR\tTARGET\t\t")
	for _, f := range figures {
		if only != "" && !slices.Contains(strings.Split(only, ","), f.name) {
			continue
		}
		began := time.Now()
		b.cost = 0
		value, note, err := f.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %.0f %s (%s, took %.1fs)\n", f.name, value, f.unit, note, time.Since(began).Seconds())
		fmt.Fprintf(w, "%s\t%.0f %s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", f.name, value, f.unit, micros(b.cost), optional(f.kubernetes), ratio(f, value), optional(f.floor), optional(f.target), note)
	}
	return w.Flush()
}

// compare measures every figure that has a cost with the programs of two directories
// alternately, each with a data directory of its own.
func compare(ctx context.Context, bin, against, only string) error {
	const rounds = 3
	dirs := [2]string{bin, against}
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SERVER CPU PER REQUEST\tBIN\tAGAINST\tRATIO\t")
	for _, f := range figures {
		if only != "" && !slices.Contains(strings.Split(only, ","), f.name) {
			continue
		}
		var least [2]time.Duration
		for round := range 2 * rounds {
			// The order is a b b a a b, so that neither is always second.
			which := (round + 1) / 2 % 2
			cost, err := costOf(ctx, dirs[which], f)
			if err != nil {
				return fmt.Errorf("%s, programs of %s: %w", f.name, dirs[which], err)
			}
			if least[which] == 0 || cost < least[which] {
				least[which] = cost
			}
		}
		if least[0] == 0 || least[1] == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t\n", f.name, micros(least[0]), micros(least[1]), float64(least[0])/float64(least[1]))
	}
	return w.Flush()
}

// costOf measures one figure with a new apiserver.
func costOf(ctx context.Context, bin string, f figure) (time.Duration, error) {
	b, err := newBench(bin)
	if err != nil {
		return 0, err
	}
	defer b.close()
	_, _, err = f.measure(ctx, b)
	fmt.Fprintf(os.Stderr, "%s: %s (%s)\n", f.name, micros(b.cost), bin)
	return b.cost, err
}

// micros formats a duration in microseconds.
func micros(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
}

func optional(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", v)
}

// ratio formats how many times better than Kubernetes a value is.
func ratio(f figure, v float64) string {
	if f.kubernetes == 0 || v == 0 {
		return "–"
	}
	if f.less {
		return fmt.Sprintf("%.1f×", f.kubernetes/v)
	}
	return fmt.Sprintf("%.1f×", v/f.kubernetes)
}
