package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/process"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
)

// joinTime is the lifetime of the token of one `keel member add`.
const joinTime = time.Hour

// grow starts another apiserver, waits until it is a voter, and then updates the other
// processes.
func (m *members) grow(ctx context.Context, conn grpc.ClientConnInterface, c *cluster.Cluster, client bool) (name string, err error) {
	began := time.Now()
	token, err := makeToken(ctx, conn, joinTime, joinGroup, "created by keel member add")
	if err != nil {
		return "", fmt.Errorf("create a join token: %w", err)
	}
	first := len(c.Members) == 0
	var added cluster.Member
	if !client {
		added, err = unfinished(ctx, conn, c)
	}
	if err == nil && added.Name == "" {
		added, err = c.AddMember(client)
	}
	if err != nil {
		return "", err
	}
	if err := cluster.WriteFile(process.JoinToken(c), []byte(token), 0o600); err != nil {
		return "", err
	}
	// Create the certificate and the address first: they do no harm if this is interrupted.
	if err := certificates(c); err != nil {
		return "", fmt.Errorf("certificates: %w", err)
	}
	if err := hostnet.Ensure(c); err != nil {
		return "", fmt.Errorf("network: %w", err)
	}
	if err := c.Save(); err != nil {
		return "", err
	}
	if first {
		m.say("%6.1fs  restarting apiserver-0 as a member behind the balancer", time.Since(began).Seconds())
		if err := m.follow(ctx, c, func(s supervise.Spec) bool { return s.Name == "apiserver-0" || strings.HasPrefix(s.Name, "balancer-") }); err != nil {
			return "", err
		}
		// It has a new address.
		there, err := dial(c)
		if err != nil {
			return "", err
		}
		defer there.Close()
		conn = there
	}
	if err := m.follow(ctx, c, func(s supervise.Spec) bool { return s.Name == added.Name }); err != nil {
		return "", err
	}
	m.say("%6.1fs  %s has started", time.Since(began).Seconds(), added.Name)
	if client {
		if err := healthy(ctx, c, added.Name); err != nil {
			return "", err
		}
		m.say("%6.1fs  %s is ready", time.Since(began).Seconds(), added.Name)
	} else if err := joined(ctx, conn, added.Name); err != nil {
		return "", fmt.Errorf("%s %w; see its log %s, or give up with `keel member remove %s`", added.Name, err, c.Path("log", added.Name+".log"), added.Name)
	}
	if !client {
		m.say("%6.1fs  %s is a voter", time.Since(began).Seconds(), added.Name)
	}
	if err := m.spread(ctx, c); err != nil {
		return "", err
	}
	m.say("%6.1fs  all processes use it", time.Since(began).Seconds())
	return added.Name, nil
}

// unfinished returns an apiserver that an earlier call added and that is not a member yet, if
// there is one.
func unfinished(ctx context.Context, conn grpc.ClientConnInterface, c *cluster.Cluster) (none cluster.Member, err error) {
	if len(c.Members) == 0 {
		return none, nil
	}
	all, err := memberv1.NewMemberServiceClient(conn).List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return none, said(err)
	}
	for _, m := range c.Members {
		if m.Join != "" && !m.Client && !slices.ContainsFunc(all.Members, func(x *memberv1.Member) bool { return x.Name == m.Name }) {
			return m, nil
		}
	}
	return none, nil
}

// shrink stops an apiserver that was removed from the members, and deletes its data, with which
// no apiserver will start again.
func (m *members) shrink(ctx context.Context, c *cluster.Cluster, name string) error {
	c.RemoveMember(name)
	if err := c.Save(); err != nil {
		return err
	}
	if err := m.follow(ctx, c, func(s supervise.Spec) bool { return s.Name == name }); err != nil {
		return err
	}
	if err := m.spread(ctx, c); err != nil {
		return err
	}
	return os.RemoveAll(c.Path(name))
}

// joined waits until a member is a healthy voter of both stores.
func joined(ctx context.Context, conn grpc.ClientConnInterface, name string) error {
	for {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		all, err := memberv1.NewMemberServiceClient(conn).List(call, &memberv1.ListRequest{}, grpc.WaitForReady(true))
		cancel()
		why := "it is not a member yet"
		if err != nil {
			why = said(err).Error()
		}
		for _, x := range all.GetMembers() {
			if x.Name != name {
				continue
			}
			if x.Etcd == memberv1.Role_ROLE_VOTER && x.Raft == memberv1.Role_ROLE_VOTER && x.Healthy {
				return nil
			}
			why = fmt.Sprintf("etcd %s, raft %s, %s", role(x.Etcd, false), role(x.Raft, false), x.Problem)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("is not a healthy voter yet: %s", why)
		}
	}
}

// follow updates the processes for which meant returns true, and leaves the others unchanged.
func (m *members) follow(ctx context.Context, c *cluster.Cluster, meant func(supervise.Spec) bool) error {
	want, err := desired(c)
	if err != nil {
		return err
	}
	have, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	have = slices.DeleteFunc(have, meant)
	for _, s := range want {
		if meant(s) {
			have = append(have, s)
		}
	}
	if err := dir(c).WriteSpecs(have); err != nil {
		return err
	}
	err = dir(c).Reload(ctx)
	if errors.Is(err, supervise.ErrDown) {
		return fmt.Errorf("%w; start it with `keel up --home %s`", err, c.Home)
	}
	return err
}

// spread updates the other processes with the addresses of the apiservers, in two waves, so
// that one of each pair is always running.
func (m *members) spread(ctx context.Context, c *cluster.Cluster) error {
	want, err := desired(c)
	if err != nil {
		return err
	}
	have, err := dir(c).ReadSpecs()
	if err != nil {
		return err
	}
	for _, second := range []bool{false, true} {
		wave := map[string]bool{}
		for _, s := range want {
			if !strings.HasPrefix(s.Name, "apiserver-") && !slices.ContainsFunc(have, s.Equal) && strings.HasSuffix(s.Name, "-1") == second {
				wave[s.Name] = true
			}
		}
		if err := m.follow(ctx, c, func(x supervise.Spec) bool { return wave[x.Name] }); err != nil {
			return err
		}
		for name := range wave {
			if err := healthy(ctx, c, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// desired returns the processes that the cluster should have.
func desired(c *cluster.Cluster) ([]supervise.Spec, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	var progs runtime.Programs
	if len(c.Nodes) > 0 {
		if progs, err = runtime.Find(filepath.Join(bin, "runtime")); err != nil {
			return nil, err
		}
	}
	return process.Specs(c, bin, progs)
}

// healthy waits until a process is healthy.
func healthy(ctx context.Context, c *cluster.Cluster, name string) error {
	for {
		list, err := dir(c).Status(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(s supervise.Status) bool { return s.Name == name })
		if i >= 0 && list[i].Healthy {
			return nil
		}
		select {
		case <-ctx.Done():
			if i < 0 {
				return fmt.Errorf("%s is not running: %w", name, ctx.Err())
			}
			return explain(ctx, c, &notReady{list[i]})
		case <-time.After(20 * time.Millisecond):
		}
	}
}
