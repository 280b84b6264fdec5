package fault

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/host"
)

var (
	seed    = flag.Uint64("seed", 7, "seed of the plan of faults")
	seconds = flag.Int("seconds", 0, "seconds for which faults are injected; 0: see -faults")
	faults  = flag.Int("faults", 0, "how many faults are injected; 0 without -seconds: each kind once")
	kinds   = flag.String("kinds", "", "kinds of faults to choose from with -seconds or -faults, as in kill,pause; empty is all")
	rounds  = flag.Int("rounds", 3, "how many leaders of each store are killed")
	logs    = flag.String("logs", "", "directory for the members' logs; empty does not keep them")
)

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" {
		os.Exit(Sandboxed(m.Run))
	}
	w, err := host.Look()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	w.Mark(root + "/m") // the members' directories
	code := Sandboxed(m.Run)
	if err := w.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// programs is the directory of the built programs.
func programs(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("KEELSON_BIN")
	if bin == "" {
		bin = "../../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "apiserver")); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return bin
}

// start starts a cluster with the apiserver of a directory. It is stopped when the test ends.
func start(t *testing.T, bin string) *Cluster {
	t.Helper()
	began := time.Now()
	c, err := NewCluster(context.Background(), bin, *logs)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				for _, m := range c.Members {
					t.Logf("%s:\n%s", m.Name, m.tail(30))
				}
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("three apiservers were ready after %s", time.Since(began).Round(time.Millisecond))
	return c
}

// withFailpoints builds the apiserver with failpoints, which no released program has.
func withFailpoints(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("KEELSON_FAULT_BIN"); bin != "" {
		return bin
	}
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags=grpcnotrace,fieldsv1string,failpoints", "-o", filepath.Join(bin, "apiserver"), ".")
	cmd.Dir = "../../services/apiserver"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off") // the module cache is complete, because the other programs have been built
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the apiserver with failpoints: %v\n%s", err, out)
	}
	return bin
}

// TestFaults injects faults under load. Without flags it injects each kind once.
func TestFaults(t *testing.T) {
	c := start(t, withFailpoints(t))
	plan := NewPlan(*seed)
	if *seconds == 0 && *faults == 0 {
		plan = NewSelection(*seed)
	}
	if *kinds != "" {
		var only []Kind
		for k := range strings.SplitSeq(*kinds, ",") {
			only = append(only, Kind(k))
		}
		plan = NewSeries(*seed, only...)
	}
	wrong, err := c.Run(t.Context(), plan, *seed, Limits{Faults: *faults, Time: time.Duration(*seconds) * time.Second}, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if len(wrong) > 0 {
		t.Fatalf("seed %d: %d problems, the first: %s", *seed, len(wrong), wrong[0])
	}
}
