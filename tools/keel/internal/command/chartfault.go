package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// chartFaults are the faults of the sidecar. Every so often it does one of them to a process of
// its pod, whose process namespace it shares, by signals: it needs no capability.
type chartFaults struct {
	target              string
	kill, pause         time.Duration
	pauseFor            time.Duration
	latency, latencyGap time.Duration
}

func (e *env) chartFault() *cobra.Command {
	f := &chartFaults{}
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Kill, pause or slow down the apiserver of this pod, for tests of faults",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e.logText()
			if f.kill < 0 || f.pause < 0 || f.latency < 0 || f.kill+f.pause+f.latency == 0 {
				return usageError{errors.New("expected at least one of --kill-every, --pause-every and --latency")}
			}
			return f.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.target, "target", "/apiserver", "`program` of the process")
	flags.DurationVar(&f.kill, "kill-every", 0, "interval at which it is killed")
	flags.DurationVar(&f.pause, "pause-every", 0, "interval at which it is paused")
	flags.DurationVar(&f.pauseFor, "pause-for", 5*time.Second, "duration of a pause")
	flags.DurationVar(&f.latency, "latency", 0, "duration of short pauses, every --latency-every")
	flags.DurationVar(&f.latencyGap, "latency-every", time.Second, "interval of the short pauses")
	return cmd
}

// run does faults until ctx ends. A process that is paused then is continued.
func (f *chartFaults) run(ctx context.Context) error {
	never := make(<-chan time.Time)
	ticks := func(every time.Duration) (<-chan time.Time, func()) {
		if every == 0 {
			return never, func() {}
		}
		t := time.NewTicker(every)
		return t.C, t.Stop
	}
	gap := f.latencyGap
	if f.latency == 0 {
		gap = 0
	}
	kill, stopKill := ticks(f.kill)
	defer stopKill()
	pause, stopPause := ticks(f.pause)
	defer stopPause()
	slow, stopSlow := ticks(gap)
	defer stopSlow()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-kill:
			f.signal(ctx, syscall.SIGKILL)
		case <-pause:
			f.hold(ctx, f.pauseFor)
		case <-slow:
			f.hold(ctx, f.latency)
		}
	}
}

// hold pauses the process.
func (f *chartFaults) hold(ctx context.Context, d time.Duration) {
	defer f.signal(ctx, syscall.SIGCONT)
	f.signal(ctx, syscall.SIGSTOP)
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (f *chartFaults) signal(ctx context.Context, s syscall.Signal) {
	pid, err := pidOf("/proc", f.target)
	if err == nil {
		err = syscall.Kill(pid, s)
	}
	if err != nil {
		slog.WarnContext(ctx, "no fault", "signal", s.String(), "error", err)
		return
	}
	slog.InfoContext(ctx, "fault", "signal", s.String(), "pid", pid)
}

// pidOf returns the process that was started as a program.
func pidOf(proc, program string) (int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, entry.Name(), "cmdline"))
		if name, _, _ := strings.Cut(string(line), "\x00"); err == nil && name == program {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no process of %s", program)
}
