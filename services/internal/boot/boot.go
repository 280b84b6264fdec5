// Package boot starts and stops every service: flags, logging, signals, and a group of
// goroutines that is stopped in the reverse of the order in which it was started. For
// clients of the apiservers it also makes what they share ([StartService]), and elects
// one of several processes ([StartElected]).
//
// A program exits with code 0 after SIGTERM or SIGINT, with 2 and one line on standard
// error after a usage error (see [Invalid]), and with 1 and a last log line that gives the
// cause otherwise. With the argument "healthcheck" it asks a running process of the same
// service whether it is ready. Package boot must never leave a goroutine behind, and never
// exit without reporting the cause.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"keelson.dev/services/internal/telemetry"
)

// Run starts a service: it builds the service's parts, gives their loops to the group, and
// returns. ctx ends with the first signal; the contexts of the group's goroutines then end
// one after the other.
type Run func(ctx context.Context, g *Group) error

// stopPatience bounds the time that stopping all parts takes together.
const stopPatience = 25 * time.Second

// Main runs the service called name and exits the process. build adds the service's flags
// and returns the Run to call once they are parsed. A second signal exits at once, with
// code 1.
func Main(name string, build func(fs *pflag.FlagSet) Run) {
	paceHeap()
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		cancel(&signalled{<-signals})
		slog.ErrorContext(ctx, "second signal: stopped at once", "service", name, "signal", (<-signals).String())
		os.Exit(1)
	}()
	os.Exit(Execute(ctx, name, os.Args[1:], os.Stderr, build))
}

// signalled is the cause of a context that a signal ended.
type signalled struct{ signal os.Signal }

func (s *signalled) Error() string { return "signal " + s.signal.String() }

// Execute is Main for tests: it takes args and stderr from its caller, stops when ctx ends
// instead of on a signal, and returns the exit code.
func Execute(ctx context.Context, name string, args []string, stderr io.Writer, build func(fs *pflag.FlagSet) Run) int {
	if len(args) > 0 && args[0] == healthcheck {
		return probe(ctx, name, args[1:], stderr)
	}
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	run := build(fs)
	format := fs.String("log-format", "text", "how to log: text or json")
	level := fs.String("log-level", "info", "what to log: debug, info, warn or error")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprintf(stderr, "usage: %s [flags]\n\n%s", name, fs.FlagUsages())
		return 0
	case err != nil:
		return refuse(stderr, name, err)
	case fs.NArg() > 0:
		return refuse(stderr, name, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	logger, err := newLogger(stderr, *format, *level)
	if err != nil {
		return refuse(stderr, name, err)
	}
	slog.SetDefault(logger)
	klogToSlog()

	begun := time.Now()
	supervisor := startedBySystemd()
	g := newGroup(ctx)
	err = start(ctx, g, run)
	if err == nil {
		close(g.started)
		slog.InfoContext(ctx, "started", "service", name, "pid", os.Getpid(), "took", time.Since(begun))
		supervisor.tell(ctx, "READY=1")
		alive, dead := context.WithCancel(g.base)
		var watched sync.WaitGroup
		watched.Go(func() { supervisor.watch(alive, g.checkAlive) })
		err = g.wait(ctx)
		dead()
		watched.Wait()
	}
	supervisor.tell(ctx, "STOPPING=1")
	if stopErr := g.stop(stopPatience); err == nil {
		err = stopErr
	}
	var invalid *invalidError
	switch {
	case errors.As(err, &invalid):
		return refuse(stderr, name, err)
	case err != nil && context.Cause(ctx) != nil && errors.Is(err, context.Canceled):
		err = nil // start-up was interrupted by the signal
	}
	if err != nil {
		slog.ErrorContext(ctx, "stopped", "service", name, "error", err)
		return 1
	}
	cause := "all work is done"
	if c := context.Cause(ctx); c != nil {
		cause = c.Error()
	}
	slog.InfoContext(ctx, "stopped", "service", name, "cause", cause)
	return 0
}

// klogToSlog makes Kubernetes' libraries, which log through klog, log to the default logger.
// It sets klog's logger once, as klog does not synchronize that with its use.
var klogToSlog = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(defaultHandler{})) })

// defaultHandler hands each record to the handler of slog's present default logger.
type defaultHandler struct{}

func (defaultHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return slog.Default().Enabled(ctx, l)
}

func (defaultHandler) Handle(ctx context.Context, r slog.Record) error {
	return slog.Default().Handler().Handle(ctx, r)
}

func (defaultHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return slog.Default().Handler().WithAttrs(attrs)
}

func (defaultHandler) WithGroup(name string) slog.Handler {
	return slog.Default().Handler().WithGroup(name)
}

// start calls run and turns a panic into an error.
func start(ctx context.Context, g *Group, run Run) (err error) {
	defer recovered("start", &err)
	return run(ctx, g)
}

// refuse prints err on one line and returns the exit code of a usage error.
func refuse(stderr io.Writer, name string, err error) int {
	line := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	fmt.Fprintf(stderr, "%s: %s\n", name, line)
	return 2
}

func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	opts.Level = l
	switch format {
	case "text":
		return slog.New(telemetry.NewLogHandler(slog.NewTextHandler(w, &opts))), nil
	case "json":
		return slog.New(telemetry.NewLogHandler(slog.NewJSONHandler(w, &opts))), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
