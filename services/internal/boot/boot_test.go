package boot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"keelson.dev/services/internal/boot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// execute runs a service until it ends by itself or ctx ends, and returns its
// exit code and what it wrote.
func execute(ctx context.Context, args []string, run boot.Run) (int, string) {
	var out bytes.Buffer
	code := boot.Execute(ctx, "svc", args, &out, func(fs *pflag.FlagSet) boot.Run {
		fs.Int("number", 0, "")
		return run
	})
	return code, out.String()
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestWrongCallsExitTwoWithOneLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ok := func(context.Context, *boot.Group) error { return nil }
	tests := []struct {
		name string
		args []string
		run  boot.Run
		want string
	}{
		{"unknown flag", []string{"--nonsense"}, ok, "nonsense"},
		{"wrong type", []string{"--number=x"}, ok, "number"},
		{"argument", []string{"extra"}, ok, "extra"},
		{"log level", []string{"--log-level=loud"}, ok, "loud"},
		{"log format", []string{"--log-format=xml"}, ok, "xml"},
		{"unwritable directory", nil, func(context.Context, *boot.Group) error {
			return boot.WritableDir("data-dir", filepath.Join(file, "below"), 0o700)
		}, "--data-dir"},
		{"missing directory flag", nil, func(context.Context, *boot.Group) error {
			return boot.WritableDir("data-dir", "", 0o700)
		}, "--data-dir is required"},
		{"several lines", nil, func(context.Context, *boot.Group) error {
			return boot.Invalid("%w", errors.Join(errors.New("one"), errors.New("two")))
		}, "one; two"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out := execute(context.Background(), tt.args, tt.run)
			if code != 2 || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "svc: ") || !strings.Contains(out, tt.want) {
				t.Fatalf("code %d, output %q; want 2 and one line with %q", code, out, tt.want)
			}
		})
	}
}

func TestFailureIsTheLastLine(t *testing.T) {
	tests := []struct {
		name string
		run  boot.Run
		want string
	}{
		{"start", func(context.Context, *boot.Group) error { return errors.New("disk is gone") }, "disk is gone"},
		{"start panics", func(context.Context, *boot.Group) error { panic("oh") }, "panic: oh"},
		{"goroutine", func(_ context.Context, g *boot.Group) error {
			g.Go("loop", func(context.Context) error { return errors.New("lost the thread") })
			g.Go("other", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			return nil
		}, "loop: lost the thread"},
		{"goroutine panics", func(_ context.Context, g *boot.Group) error {
			g.Go("loop", func(context.Context) error { panic("oh") })
			return nil
		}, "loop: panic: oh"},
		{"on the way down", func(_ context.Context, g *boot.Group) error {
			g.OnStop("flush", func(context.Context) error { return errors.New("short write") })
			return nil
		}, "flush: short write"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out := execute(context.Background(), nil, tt.run)
			if last := lastLine(out); code != 1 || !strings.Contains(last, tt.want) || !strings.Contains(last, "stopped") {
				t.Fatalf("code %d, last line %q; want 1 and %q", code, last, tt.want)
			}
		})
	}
}

func TestStopsInReverseOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var order []string // only touched on the way down, one after the other
	loop := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name)
			return ctx.Err()
		}
	}
	code, out := execute(ctx, nil, func(_ context.Context, g *boot.Group) error {
		g.Go("a", loop("a"))
		g.OnStop("b", func(context.Context) error { order = append(order, "b"); return nil })
		g.Go("c", loop("c"))
		g.Go("d", func(ctx context.Context) error {
			cancel()
			return loop("d")(ctx)
		})
		return nil
	})
	if want := []string{"d", "c", "b", "a"}; code != 0 || !slices.Equal(order, want) {
		t.Fatalf("code %d, order %v, want %v\n%s", code, order, want, out)
	}
}

func TestEndsWhenAllIsDone(t *testing.T) {
	code, out := execute(context.Background(), []string{"--log-format=json"}, func(_ context.Context, g *boot.Group) error {
		g.Go("once", func(context.Context) error { return nil })
		return nil
	})
	if code != 0 || !strings.Contains(lastLine(out), `"cause":"all work is done"`) {
		t.Fatalf("code %d, output %s", code, out)
	}
}

func TestInterruptedStartIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	code, out := execute(ctx, nil, func(ctx context.Context, _ *boot.Group) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if code != 0 {
		t.Fatalf("code %d, output %s", code, out)
	}
}

func TestServiceFlags(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	s := boot.ServiceFlags(fs)
	if err := s.Check(); err == nil || !strings.Contains(err.Error(), "--identity") {
		t.Fatal(err)
	}
	if err := fs.Parse([]string{"--identity=/i", "--apiserver=a:1,b:2"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil || !slices.Equal(s.APIServers, []string{"a:1", "b:2"}) || s.OpsAddress != "127.0.0.1:0" {
		t.Fatalf("%+v %v", s, err)
	}
}

func TestHelp(t *testing.T) {
	code, out := execute(context.Background(), []string{"--help"}, nil)
	if code != 0 || !strings.Contains(out, "--log-level") {
		t.Fatalf("code %d, output %s", code, out)
	}
}
