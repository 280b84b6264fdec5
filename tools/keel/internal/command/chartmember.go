package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/keel/internal/chart"
)

// chartMember is an apiserver of the StatefulSet.
type chartMember struct {
	*env
	name, host, identity, data string
	apiservers                 []string
	// state is the ConfigMap that records that the control plane has been founded.
	state    string
	snapshot string
}

// Ports of the members, which the chart's Services have too.
const (
	chartPeerPort = "6445"
	chartEtcdPort = "2380"
)

func (m *chartMember) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.name, "name", os.Getenv(podNameVariable), "`name` of the pod, and of the member; default: $POD_NAME")
	f.StringVar(&m.identity, "identity", "/pki", "`directory` with the apiservers' certificate")
	f.StringVar(&m.data, "data-dir", "/data", "`directory` of the member's volume")
	f.StringSliceVar(&m.apiservers, "join", nil, "`host:port` of the apiservers that are ready, for their gRPC API")
	required(cmd, "join")
}

// podNameVariable is the environment variable with the pod's name. Variables are not expanded in
// the command of a lifecycle hook.
const podNameVariable = "POD_NAME"

// chartStart decides how an apiserver starts, and becomes it.
func (e *env) chartStart() *cobra.Command {
	m := &chartMember{env: e}
	cmd := &cobra.Command{
		Use:   "start -- APISERVER FLAG…",
		Short: "Start an apiserver that founds the control plane, joins it, or continues",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.logText()
			flags, err := m.prepare(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("start %s: %w", m.name, err)
			}
			return syscall.Exec(args[0], append(args, flags...), os.Environ()) //nolint:gosec // the chart's own command line
		},
	}
	m.flags(cmd)
	cmd.Flags().StringVar(&m.host, "host", "", "`name` at which the other members reach this one")
	cmd.Flags().StringVar(&m.state, "state", "", "`name` of the ConfigMap that records that the control plane has been founded")
	cmd.Flags().StringVar(&m.snapshot, "restore", "", "`file` of a snapshot that a new control plane begins with")
	required(cmd, "host", "state")
	return cmd
}

// prepare carries out the plan, and returns the flags that it means.
func (m *chartMember) prepare(ctx context.Context, apiserver string) ([]string, error) {
	ordinal, err := chart.Ordinal(m.name)
	if err != nil {
		return nil, usageError{err}
	}
	volume := chart.Volume(m.data)
	seen := chart.Seen{Ordinal: ordinal, Snapshot: m.snapshot != "", Member: true}
	if seen.Origin, seen.Leaving, err = volume.Origin(); err != nil {
		return nil, err
	}
	if seen.Leaving {
		if seen.Member, err = m.isMember(ctx); err != nil {
			return nil, fmt.Errorf("it had asked to leave, and the others do not say whether it is still a member: %w", err)
		}
	}
	var outer *chart.Outer
	if ordinal == 0 {
		if outer, err = chart.InCluster(); err != nil {
			return nil, err
		}
		founder, err := outer.Founder(ctx, m.state)
		switch {
		case err == nil:
			seen.Recorded = founder != ""
		case seen.Origin != chart.Empty:
			slog.WarnContext(ctx, "the record of who founded the control plane cannot be read", "error", err)
			seen.Recorded = true // nothing depends on it
		default:
			return nil, err
		}
	}
	plan := chart.PlanStart(seen)
	if plan.Wipe {
		slog.InfoContext(ctx, "this member has left; its volume is emptied, and it joins anew")
		if err := volume.Wipe(); err != nil {
			return nil, err
		}
	} else if err := volume.Stay(); err != nil {
		return nil, err
	}
	if plan.Lost {
		slog.WarnContext(ctx, "the volume is empty, but the control plane has been founded: joining the other members; if there are none, delete the key \"founded\" of the ConfigMap to begin anew", "configmap", m.state)
	}
	if plan.Restore {
		if err := run(ctx, m.env, apiserver, "snapshot", "restore", m.snapshot, "--set-aside", "--data-dir", m.data, "--name", m.name); err != nil {
			return nil, fmt.Errorf("restore %s: %w", m.snapshot, err)
		}
	}
	if seen.Origin != plan.Origin || plan.Wipe {
		if err := volume.SetOrigin(plan.Origin); err != nil {
			return nil, err
		}
	}
	if plan.Record {
		if err := outer.RecordFounder(ctx, m.state, m.name); err != nil {
			return nil, err
		}
	}
	return m.apiserverFlags(plan.Origin), nil
}

// apiserverFlags are the flags by which an apiserver finds the other members.
func (m *chartMember) apiserverFlags(o chart.Origin) []string {
	flags := []string{"--name=" + m.name, "--data-dir=" + m.data, "--identity=" + m.identity}
	if o == chart.Founded {
		return append(flags,
			"--members="+m.name+"="+net.JoinHostPort(m.host, chartPeerPort),
			"--etcd-members="+m.name+"="+net.JoinHostPort(m.host, chartEtcdPort))
	}
	flags = append(flags, "--peer-host="+m.host)
	for _, a := range m.apiservers {
		flags = append(flags, "--join="+a)
	}
	return flags
}

// isMember asks the others whether this apiserver is a member.
func (m *chartMember) isMember(ctx context.Context) (bool, error) {
	conn, err := dialAt(m.identity, m.apiservers)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*remoteTimeout)
	defer cancel()
	return hasPlace(ctx, conn, m.name)
}

// chartLeave is what a pod of the StatefulSet runs before it ends.
func (e *env) chartLeave() *cobra.Command {
	m := &chartMember{env: e}
	var set string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Leave the members if the StatefulSet has been scaled below this pod",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			ordinal, err := chart.Ordinal(m.name)
			if err != nil {
				return usageError{err}
			}
			outer, err := chart.InCluster()
			if err != nil {
				return err
			}
			replicas, deleted, err := outer.StatefulSet(ctx, set)
			if err != nil || !chart.Leaves(ordinal, replicas, deleted) {
				return err
			}
			return m.leave(ctx)
		},
	}
	m.flags(cmd)
	cmd.Flags().StringVar(&set, "statefulset", "", "`name` of the StatefulSet")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "maximum duration")
	required(cmd, "statefulset")
	return cmd
}

// leave asks the others to remove this member until they have done so, or ctx ends. The apiserver
// ends during the last step, and with it this process: the volume records the intention first.
func (m *chartMember) leave(ctx context.Context) error {
	if err := chart.Volume(m.data).SetLeaving(); err != nil {
		return err
	}
	conn, err := dialAt(m.identity, m.apiservers)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		_, err := memberv1.NewMemberServiceClient(conn).Leave(ctx, &memberv1.LeaveRequest{Name: m.name}, grpc.WaitForReady(true))
		if err == nil {
			return nil
		}
		if there, asked := hasPlace(ctx, conn, m.name); asked == nil && !there {
			return nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("leave the members: %w", errors.Join(ctx.Err(), said(err)))
		}
	}
}

// run runs a program with this process's output.
func run(ctx context.Context, e *env, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the chart's own command line
	cmd.Stdout, cmd.Stderr = e.out, e.err
	return cmd.Run()
}
