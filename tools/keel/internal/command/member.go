package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"

	"keelson.dev/tools/keel/internal/cluster"
)

// joinGroup is the group of apiservers that may join with a token.
const joinGroup = "system:bootstrappers:keelson:apiserver"

// members holds the flags with which the verbs of `keel member` reach a control plane: the one
// of --home, or any by --server and --kubeconfig.
type members struct {
	remote
	wait time.Duration
}

// member lists and changes the members.
func (e *env) member() *cobra.Command {
	m := &members{remote: remote{env: e}}
	cmd := &cobra.Command{Use: "member", Short: "List, add, remove, replace and recover the apiservers that replicate the state"}
	f := cmd.PersistentFlags()
	m.flags(f)
	f.DurationVar(&m.wait, "wait", 2*time.Minute, "maximum duration of a change")
	cmd.AddCommand(m.list(), m.token(), m.add(), m.remove(), m.replace(), m.recover())
	return cmd
}

// local returns a connection to the cluster of --home, whose processes keel may start, and
// locks it until end is called.
func (m *members) local(ctx context.Context) (conn *grpc.ClientConn, c *cluster.Cluster, end func(), err error) {
	if m.elsewhere() {
		return nil, nil, nil, usageError{errors.New("--server: only `keel member list`, `token` and `remove` can be used with a cluster elsewhere; start an apiserver there with --join and --join-token-file")}
	}
	if err := needRoot(); err != nil {
		return nil, nil, nil, err
	}
	if c, err = cluster.Load(m.home); err != nil {
		return nil, nil, nil, err
	}
	if c.Joined != nil {
		return nil, nil, nil, errors.New("this home contains a node of a cluster elsewhere")
	}
	ctx, cancel := context.WithTimeout(ctx, m.wait)
	defer cancel()
	unlock, err := m.alone(ctx, c.Home)
	if err != nil {
		return nil, nil, nil, err
	}
	if conn, c, err = m.reach(); err != nil {
		unlock()
		return nil, nil, nil, err
	}
	return conn, c, func() { conn.Close(); unlock() }, nil
}

// warnEven prints a warning if the number of voters is even.
func (m *members) warnEven(voters int) {
	if voters > 0 && voters%2 == 0 {
		fmt.Fprintf(m.err, "warning: %d members do not tolerate more failures than %d: add or remove one (`keel member add`, `keel member remove NAME`)\n", voters, voters-1)
	}
}

// warnEvenElsewhere is warnEven for a control plane that was not created here.
func (m *members) warnEvenElsewhere(ctx context.Context, conn grpc.ClientConnInterface) error {
	ctx, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	all, err := memberv1.NewMemberServiceClient(conn).List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("list the remaining members: %w", said(err))
	}
	voters := 0
	for _, x := range all.Members {
		if x.Etcd == memberv1.Role_ROLE_VOTER {
			voters++
		}
	}
	m.warnEven(voters)
	return nil
}

// repeatable wraps a verb that can be repeated after an error, and adds a hint to the error.
func (m *members) repeatable(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		if m.elsewhere() || errors.As(err, new(usageError)) {
			return err
		}
		return hinted(err, "run `keel up --home %s` to make sure that all processes are running, then repeat the command", m.home)
	}
}

// wayOut returns what to do if a member could not be removed.
func wayOut(err error, name string) string {
	if status.Code(err) == codes.FailedPrecondition { // the error explains why
		return "see `keel member list`"
	}
	return fmt.Sprintf("check with `keel member list` whether %s is still a member, then repeat the command; if a majority of the members is lost permanently, recover from the disk of one with `keel member recover --from NAME`", name)
}

// stays clears the mark of a leaving member after a failure, if it is still a member. If that
// is unknown, the next `keel up` or `keel member remove` finds out. It returns why, joined with
// its own error.
func (m *members) stays(ctx context.Context, conn grpc.ClientConnInterface, c *cluster.Cluster, name string, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), remoteTimeout)
	defer cancel()
	if there, err := hasPlace(ctx, conn, name); err == nil && there {
		return errors.Join(why, c.SetLeaving(name, false))
	}
	return why
}

// hasPlace asks the members whether name is one of them.
func hasPlace(ctx context.Context, conn grpc.ClientConnInterface, name string) (bool, error) {
	all, err := memberv1.NewMemberServiceClient(conn).List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return false, said(err)
	}
	return slices.ContainsFunc(all.Members, func(x *memberv1.Member) bool { return x.Name == name }), nil
}

// finishLeaving finds out what became of members whose removal was interrupted. Those that are
// not members any more are removed from the description, and changed is true. The others stay.
func finishLeaving(c *cluster.Cluster, step func(string, ...any), placed func(name string) (bool, error)) (changed bool, err error) {
	for _, x := range slices.Clone(c.Members) {
		if !x.Leaving {
			continue
		}
		there, err := placed(x.Name)
		switch {
		case err != nil:
			return changed, fmt.Errorf("the removal of %s was interrupted, and the others cannot be asked whether it is still a member: %w", x.Name, err)
		case there:
			step("%s is still a member: its removal was interrupted", x.Name)
			err = c.SetLeaving(x.Name, false)
		default:
			step("%s is no longer a member: completing its interrupted removal", x.Name)
			c.RemoveMember(x.Name)
			changed, err = true, c.Save()
		}
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// list lists the members.
func (m *members) list() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the members, their roles and how far they lag behind",
		Example: `  keel member list
  keel member list --server 10.0.0.1:6444,10.0.0.2:6444 --kubeconfig admin.conf`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, _, err := m.reach()
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
			defer cancel()
			return m.printMembers(ctx, conn)
		},
	}
}

// errSingle is the error of printMembers for a single apiserver, which does not serve
// MemberService.
var errSingle = errors.New("there is only one apiserver, which has no members to list; `keel member add` adds another")

// printMembers prints the members as a table.
func (e *env) printMembers(ctx context.Context, conn grpc.ClientConnInterface) error {
	all, err := memberv1.NewMemberServiceClient(conn).List(ctx, &memberv1.ListRequest{}, grpc.WaitForReady(true))
	if status.Code(err) == codes.Unimplemented {
		return errSingle
	}
	if err != nil {
		return said(err)
	}
	rows := [][]string{{"NAME", "PEER", "ETCD", "LAG", "RAFT", "LAG", "HEALTHY", "REASON"}}
	for _, x := range all.Members {
		rows = append(rows, []string{
			x.Name, x.PeerAddress, role(x.Etcd, x.LeadsEtcd), fmt.Sprint(x.EtcdLag),
			role(x.Raft, x.LeadsRaft), fmt.Sprint(x.RaftLag), fmt.Sprint(x.Healthy), x.Problem,
		})
	}
	return table(e.out, rows)
}

func role(r memberv1.Role, leads bool) string {
	if leads {
		return "leader"
	}
	return strings.ToLower(strings.TrimPrefix(r.String(), "ROLE_"))
}

// said returns the error of an RPC without the text that gRPC adds.
func said(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return errors.New(s.Message())
	}
	return err
}

// token creates a token with which an apiserver may join.
func (m *members) token() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Create a token with which an apiserver on another machine may join, and print its flags",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, c, err := m.reach()
			if err != nil {
				return err
			}
			defer conn.Close()
			token, err := makeToken(cmd.Context(), conn, ttl, joinGroup, "created by keel member token")
			if err != nil {
				return err
			}
			server := conn.CanonicalTarget()
			if c != nil {
				server = c.NodeGRPC()
			} else if t, err := m.target(); err == nil {
				server = strings.Join(t.endpoints, ",")
			}
			m.say("%s", token)
			fmt.Fprintf(m.err, "Write it to a file and start the apiserver with --join %s --join-token-file FILE,\nan --identity and --service-account-key of this cluster, and a --name of its own.\n", server)
			return nil
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "lifetime of the token")
	return cmd
}

// add starts another apiserver on this machine and waits until it is a voter.
func (m *members) add() *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Start another apiserver on this machine, which joins the members",
		Example: `  keel member add
  keel member add --client     # serves requests without a vote`,
		Args: noArgs,
		RunE: m.repeatable(func(cmd *cobra.Command, _ []string) error {
			conn, c, end, err := m.local(cmd.Context())
			if err != nil {
				return err
			}
			defer end()
			ctx, cancel := context.WithTimeout(cmd.Context(), m.wait)
			defer cancel()
			if _, err := m.grow(ctx, conn, c, client); err != nil {
				return err
			}
			m.warnEven(len(c.Voters()))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&client, "client", false, "not a member: it uses the members' stores; for more than three or five apiservers")
	return cmd
}

// remove removes a member and stops its apiserver.
func (m *members) remove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a member; it may be down, as long as the others have a majority without it",
		Example: `  keel member remove apiserver-2
  keel member remove apiserver-2 --server 10.0.0.1:6444 --kubeconfig admin.conf`,
		Args:              exactArgs(1),
		ValidArgsFunction: m.memberNames,
		RunE: m.repeatable(func(cmd *cobra.Command, args []string) error {
			if m.elsewhere() {
				conn, _, err := m.reach()
				if err != nil {
					return err
				}
				defer conn.Close()
				if err := m.leave(cmd.Context(), conn, args[0]); err != nil {
					return err
				}
				return m.warnEvenElsewhere(cmd.Context(), conn)
			}
			_, c, end, err := m.local(cmd.Context())
			if err != nil {
				return err
			}
			defer end()
			if err := known(c, args[0]); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), m.wait)
			defer cancel()
			if x, _ := c.Member(args[0]); !x.Client {
				others, err := dialOthers(c, args[0])
				if err != nil {
					return err
				}
				defer others.Close()
				if err := c.SetLeaving(args[0], true); err != nil {
					return err
				}
				if err := m.leave(ctx, others, args[0]); err != nil {
					return m.stays(ctx, others, c, args[0], err)
				}
			}
			if err := m.shrink(ctx, c, args[0]); err != nil {
				return err
			}
			m.warnEven(len(c.Voters()))
			return nil
		}),
	}
}

// replace replaces a member by a new apiserver.
func (m *members) replace() *cobra.Command {
	return &cobra.Command{
		Use:               "replace NAME",
		Short:             "Start a new apiserver and, once it is a voter, remove another one",
		Example:           `  keel member replace apiserver-1`,
		Args:              exactArgs(1),
		ValidArgsFunction: m.memberNames,
		RunE: m.repeatable(func(cmd *cobra.Command, args []string) error {
			conn, c, end, err := m.local(cmd.Context())
			if err != nil {
				return err
			}
			defer end()
			if err := known(c, args[0]); err != nil {
				return err
			}
			if x, _ := c.Member(args[0]); x.Client {
				return usageError{fmt.Errorf("%s is not a member: remove it and add another", args[0])}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), m.wait)
			defer cancel()
			added, err := m.grow(ctx, conn, c, false)
			if err != nil {
				return err
			}
			others, err := dialOthers(c, args[0])
			if err != nil {
				return err
			}
			defer others.Close()
			if err := c.SetLeaving(args[0], true); err != nil {
				return err
			}
			_, err = memberv1.NewMemberServiceClient(others).Replace(ctx, &memberv1.ReplaceRequest{Old: args[0], New: added}, grpc.WaitForReady(true))
			if err != nil {
				return m.stays(ctx, others, c, args[0], fmt.Errorf("%s has joined, but %s was not removed: %w; try again with `keel member remove %s`", added, args[0], said(err), args[0]))
			}
			m.say("%s is no longer a member", args[0])
			return m.shrink(ctx, c, args[0])
		}),
	}
}

// known returns an error unless the cluster has an apiserver called name.
func known(c *cluster.Cluster, name string) error {
	if _, ok := c.Member(name); ok {
		return nil
	}
	var names []string
	for _, x := range c.Members {
		names = append(names, x.Name)
	}
	if len(names) == 0 {
		return errors.New("there is only one apiserver; run `keel member add` first")
	}
	return usageError{fmt.Errorf("there is no member %q, only %s", name, strings.Join(names, ", "))}
}

// leave asks the members to remove one of them.
func (m *members) leave(ctx context.Context, conn grpc.ClientConnInterface, name string) error {
	began := time.Now()
	_, err := memberv1.NewMemberServiceClient(conn).Leave(ctx, &memberv1.LeaveRequest{Name: name}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("remove %s: %w; %s", name, said(err), wayOut(err, name))
	}
	m.say("%6.1fs  %s is no longer a member", time.Since(began).Seconds(), name)
	return nil
}
