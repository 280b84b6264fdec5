package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
)

// Resource is the resource that authorization rules name to allow operations on members.
var Resource = schema.GroupVersionResource{Group: "keelson.dev", Version: "v1", Resource: "members"}

const (
	// admittedPrefix is the prefix of admissions in etcd. They expire after admittedSeconds.
	admittedPrefix  = "/keelson/join/"
	admittedSeconds = 600
	// changeKey is held while a member is being removed. It expires after changeSeconds.
	changeKey     = "/keelson/change"
	changeSeconds = 60
	// askTime bounds the request for a member's status.
	askTime = time.Second
	// pollTime is the interval at which a condition that is waited for is checked.
	pollTime = 100 * time.Millisecond
	// patience bounds Leave and Replace.
	patience = 2 * time.Minute
	// maxVoters is the largest number of members: each further one slows writes down without
	// making the cluster safer.
	maxVoters = 7
)

// nameForm matches the allowed names of apiservers, from which etcd's seats are derived.
var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?$`)

// Etcd is what the service needs of this apiserver's etcd member.
type Etcd interface {
	Members(ctx context.Context) ([]etcd.Member, error)
	Remove(ctx context.Context, name string) error
	Names() []string
	Known() []etcd.Known
	Leads() bool
	Applied() uint64
	Health() error
}

// Raft is what the service needs of this apiserver's raft store.
type Raft interface {
	Status() raft.Status
	Leads() bool
	Health() error
}

// Config configures a Service.
type Config struct {
	// Name is the name of this apiserver.
	Name string
	// Etcd is this apiserver's etcd member.
	Etcd Etcd
	// Store is the etcd store, which holds the admissions.
	Store store.Store
	// Dial returns a connection to another member.
	Dial func(name string) (grpc.ClientConnInterface, error)

	askTime time.Duration // shortened by tests; zero means askTime
}

// Service implements MemberService and PeerService on a member.
type Service struct {
	cfg   Config
	raft  atomic.Pointer[Raft]
	mu    sync.Mutex
	conns map[string]grpc.ClientConnInterface
	// retired is closed when this apiserver is asked to stop, quiet when it serves no clients
	// any more, and released when it need not keep its votes any longer.
	retired, quiet, released          chan struct{}
	retire, closeQuiet, closeReleased func()
}

// NewService returns a service. Until Serve is called, calls that need the raft store fail with
// UNAVAILABLE.
func NewService(cfg Config) *Service {
	cfg.askTime = cmp.Or(cfg.askTime, askTime)
	s := &Service{
		cfg: cfg, conns: map[string]grpc.ClientConnInterface{},
		retired: make(chan struct{}), quiet: make(chan struct{}), released: make(chan struct{}),
	}
	s.retire = sync.OnceFunc(func() { close(s.retired) })
	s.closeQuiet = sync.OnceFunc(func() { close(s.quiet) })
	s.closeReleased = sync.OnceFunc(func() { close(s.released) })
	return s
}

// Retired is closed when this apiserver is asked to stop because it is about to be removed.
func (s *Service) Retired() <-chan struct{} { return s.retired }

// Serve provides this apiserver's raft store.
func (s *Service) Serve(r Raft) { s.raft.Store(&r) }

// Close closes the connections to other members.
func (s *Service) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.conns)
}

// RegisterAPI registers MemberService for clients. rights authorizes them.
func (s *Service) RegisterAPI(r grpc.ServiceRegistrar, rights authz.Authorizer) {
	memberv1.RegisterMemberServiceServer(r, &server{Service: s, may: authorized(rights)})
}

// authorized returns a function that checks whether the caller may use a verb on a member. Its
// error is a gRPC status.
func authorized(rights authz.Authorizer) func(ctx context.Context, verb, name string) error {
	return func(ctx context.Context, verb, name string) error {
		a := &request.Attributes{User: request.UserFrom(ctx), Verb: verb, Resource: Resource, Name: name}
		allowed, reason, err := rights.Authorize(ctx, a)
		if err != nil && ctx.Err() != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
		if err != nil || !allowed {
			return apistatus.ToGRPC(&authz.Forbidden(a, reason).ErrStatus)
		}
		return nil
	}
}

// RegisterPeers registers both services for other members. allow returns a gRPC status error if
// the caller is not a member.
func (s *Service) RegisterPeers(r grpc.ServiceRegistrar, allow func(context.Context) error) {
	memberv1.RegisterMemberServiceServer(r, &server{Service: s, may: func(ctx context.Context, _, _ string) error { return allow(ctx) }})
	memberv1.RegisterPeerServiceServer(r, &peerServer{Service: s, allow: allow})
}

// server implements MemberService; may authorizes its callers.
type server struct {
	memberv1.UnimplementedMemberServiceServer
	*Service
	may func(ctx context.Context, verb, name string) error
}

// List implements MemberService.
func (s *server) List(ctx context.Context, _ *memberv1.ListRequest) (*memberv1.ListResponse, error) {
	if err := s.may(ctx, "list", ""); err != nil {
		return nil, err
	}
	all, err := s.list(ctx)
	if err != nil {
		return nil, wire(ctx, err)
	}
	return &memberv1.ListResponse{Members: all}, nil
}

// Join implements MemberService.
func (s *server) Join(ctx context.Context, r *memberv1.JoinRequest) (*memberv1.JoinResponse, error) {
	if err := s.may(ctx, "create", r.Name); err != nil {
		return nil, err
	}
	if !r.Client {
		if err := valid(r); err != nil {
			return nil, err
		}
		if err := s.admit(ctx, r); err != nil {
			return nil, wire(ctx, err)
		}
	}
	return &memberv1.JoinResponse{Members: s.addresses()}, nil
}

// Leave implements MemberService.
func (s *server) Leave(ctx context.Context, r *memberv1.LeaveRequest) (*memberv1.LeaveResponse, error) {
	if err := s.may(ctx, "delete", r.Name); err != nil {
		return nil, err
	}
	if !nameForm.MatchString(r.Name) {
		return nil, status.Errorf(codes.InvalidArgument, "%q is not a valid member name", r.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.leave(ctx, r.Name, !r.PassedOn); err != nil {
		return nil, wire(ctx, err)
	}
	return &memberv1.LeaveResponse{}, nil
}

// Replace implements MemberService.
func (s *server) Replace(ctx context.Context, r *memberv1.ReplaceRequest) (*memberv1.ReplaceResponse, error) {
	if err := s.may(ctx, "delete", r.Old); err != nil {
		return nil, err
	}
	if !nameForm.MatchString(r.Old) || !nameForm.MatchString(r.New) || r.Old == r.New {
		return nil, status.Errorf(codes.InvalidArgument, "replace %q by %q: expected two different member names", r.Old, r.New)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := s.settled(ctx, r.New)
	if err == nil {
		err = s.leave(ctx, r.Old, true)
	}
	if err != nil {
		return nil, wire(ctx, err)
	}
	return &memberv1.ReplaceResponse{}, nil
}

// valid checks the name and the addresses of a request to join. Its error is a gRPC status.
func valid(r *memberv1.JoinRequest) error {
	if !nameForm.MatchString(r.Name) {
		return status.Errorf(codes.InvalidArgument, "%q is not a valid member name: use lower case letters, digits, '-' and '.'", r.Name)
	}
	for _, address := range []string{r.PeerAddress, r.EtcdAddress} {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || port == "0" || len(address) > 300 {
			return status.Errorf(codes.InvalidArgument, "%q is not a valid address: expected host:port", address)
		}
	}
	return nil
}

// errRefused is wrapped by errors of requests that were refused before anything changed.
var errRefused = errors.New("refused")

// admit records in etcd that a name may join.
func (s *Service) admit(ctx context.Context, r *memberv1.JoinRequest) error {
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	voters := 0
	for _, m := range all {
		if m.Etcd == memberv1.Role_ROLE_VOTER {
			voters++
		}
		if m.Name == r.Name && m.Healthy && m.PeerAddress != r.PeerAddress {
			return status.Errorf(codes.AlreadyExists, "%s is already a member, at %s: choose another --name", m.Name, m.PeerAddress)
		}
		if m.Name == r.Name {
			voters-- // it comes back, and does not count twice
		}
	}
	if voters >= maxVoters {
		return fmt.Errorf("%w: there are %d members already, which is the maximum; start %s with --member=false", errRefused, voters, r.Name)
	}
	return s.write(ctx, store.Write{Key: admittedPrefix + r.Name, Value: []byte(r.PeerAddress), Expect: store.Any, TTLSeconds: admittedSeconds})
}

// Admitted reports whether a name may join.
func (s *Service) Admitted(ctx context.Context, name string) bool {
	_, _, err := s.cfg.Store.Get(ctx, admittedPrefix+name)
	return err == nil
}

// write commits one write to the etcd store.
func (s *Service) write(ctx context.Context, w store.Write) error {
	v, err := s.cfg.Store.Commit(ctx, []store.Write{w})
	if err == nil {
		err = v[0].Err
	}
	return err
}

// addresses returns the names and addresses of the members, as far as this one knows them. It
// needs no quorum.
func (s *Service) addresses() (out []*memberv1.Member) {
	names := s.cfg.Etcd.Names()
	for _, k := range s.cfg.Etcd.Known() {
		if !slices.Contains(names, k.Name) {
			continue // announced, but not a member of etcd (yet)
		}
		out = append(out, &memberv1.Member{Name: k.Name, PeerAddress: k.Service, EtcdAddress: k.Address})
	}
	return out
}

// list returns the members of both stores, sorted by name, with the status that each reports.
func (s *Service) list(ctx context.Context) ([]*memberv1.Member, error) {
	store := s.raft.Load()
	if store == nil {
		return nil, status.Error(codes.Unavailable, "this apiserver is starting")
	}
	members, err := s.cfg.Etcd.Members(ctx)
	if err != nil {
		return nil, err
	}
	raftRoles := map[string]memberv1.Role{}
	for _, m := range (*store).Status().Members {
		role := memberv1.Role_ROLE_LEARNER
		if m.Voter {
			role = memberv1.Role_ROLE_VOTER
		}
		raftRoles[m.Name] = max(raftRoles[m.Name], role)
	}
	byName := map[string]*memberv1.Member{}
	for _, m := range members {
		role := memberv1.Role_ROLE_VOTER
		if m.Learner {
			role = memberv1.Role_ROLE_LEARNER
		}
		byName[m.Name] = &memberv1.Member{Name: m.Name, Etcd: role, Raft: memberv1.Role_ROLE_ABSENT}
	}
	for name, role := range raftRoles {
		if byName[name] == nil {
			byName[name] = &memberv1.Member{Name: name, Etcd: memberv1.Role_ROLE_ABSENT}
		}
		byName[name].Raft = role
	}
	for _, k := range s.cfg.Etcd.Known() {
		if m := byName[k.Name]; m != nil {
			m.PeerAddress, m.EtcdAddress = k.Service, k.Address
		}
	}
	s.forget(byName)
	s.askAll(ctx, byName)
	out := make([]*memberv1.Member, 0, len(byName))
	for _, m := range byName {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *memberv1.Member) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// forget closes the connections to apiservers that are no longer members.
func (s *Service) forget(members map[string]*memberv1.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.conns {
		if members[name] == nil {
			closeConn(c)
			delete(s.conns, name)
		}
	}
}

// askAll asks all members for their status, in parallel, and fills it in.
func (s *Service) askAll(ctx context.Context, members map[string]*memberv1.Member) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.askTime)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	answers := map[string]*memberv1.StatusResponse{}
	for name, m := range members {
		wg.Go(func() {
			// WaitForReady, so that a member that has just come back is not reported as down
			// because an earlier attempt to connect failed.
			st, err := s.ask(ctx, name, grpc.WaitForReady(true))
			switch {
			case err != nil:
				m.Problem = "does not answer: " + status.Convert(err).Message()
				return
			case st.Name != name:
				m.Problem = fmt.Sprintf("another member answers at its address: %q", st.Name)
				return
			}
			m.Healthy, m.Problem, m.LeadsEtcd, m.LeadsRaft = st.Problem == "", st.Problem, st.LeadsEtcd, st.LeadsRaft
			mu.Lock()
			answers[name] = st
			mu.Unlock()
		})
	}
	wg.Wait()
	var etcd, raft uint64
	for _, st := range answers {
		etcd, raft = max(etcd, st.EtcdApplied), max(raft, st.RaftApplied)
	}
	for name, st := range answers {
		members[name].EtcdLag, members[name].RaftLag = etcd-st.EtcdApplied, raft-st.RaftApplied
	}
}

// ask returns the status of a member, which may be this one.
func (s *Service) ask(ctx context.Context, name string, options ...grpc.CallOption) (*memberv1.StatusResponse, error) {
	if name == s.cfg.Name {
		return s.status(), nil
	}
	conn, err := s.conn(name)
	if err != nil {
		return nil, err
	}
	return memberv1.NewPeerServiceClient(conn).Status(ctx, &memberv1.StatusRequest{}, options...)
}

// Others returns connections to the other known members.
func (s *Service) Others() []grpc.ClientConnInterface {
	var out []grpc.ClientConnInterface
	for _, m := range s.addresses() {
		if m.GetName() == s.cfg.Name {
			continue
		}
		if c, err := s.conn(m.GetName()); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// conn returns the connection to another member, and makes it on first use.
func (s *Service) conn(name string) (grpc.ClientConnInterface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.conns[name]; ok {
		return c, nil
	}
	c, err := s.cfg.Dial(name)
	if err == nil {
		s.conns[name] = c
	}
	return c, err
}

// status returns the status of this member.
func (s *Service) status() *memberv1.StatusResponse {
	out := &memberv1.StatusResponse{
		Name: s.cfg.Name, LeadsEtcd: s.cfg.Etcd.Leads(), EtcdApplied: s.cfg.Etcd.Applied(), Members: s.addresses(),
	}
	problem := s.cfg.Etcd.Health()
	if r := s.raft.Load(); r == nil {
		problem = errors.Join(problem, errors.New("the raft store is starting"))
	} else {
		out.LeadsRaft, out.RaftApplied = (*r).Leads(), (*r).Status().Applied
		problem = errors.Join(problem, (*r).Health())
	}
	if problem != nil {
		out.Problem = strings.ReplaceAll(problem.Error(), "\n", "; ")
	}
	return out
}

// peerServer implements PeerService; allow admits only other members.
type peerServer struct {
	memberv1.UnimplementedPeerServiceServer
	*Service
	allow func(context.Context) error
}

// Status implements PeerService.
func (s *peerServer) Status(ctx context.Context, _ *memberv1.StatusRequest) (*memberv1.StatusResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	return s.status(), nil
}

// Retire implements PeerService.
func (s *peerServer) Retire(ctx context.Context, r *memberv1.RetireRequest) (*memberv1.RetireResponse, error) {
	if err := s.allow(ctx); err != nil {
		return nil, err
	}
	s.retire()
	if !r.Stay {
		s.closeReleased()
		return &memberv1.RetireResponse{}, nil
	}
	select {
	case <-s.quiet:
		return &memberv1.RetireResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// wire converts an error to a gRPC status error.
func wire(ctx context.Context, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case ctx.Err() != nil:
		return status.Error(status.FromContextError(ctx.Err()).Code(), err.Error())
	case errors.Is(err, errRefused), errors.Is(err, etcd.ErrMember):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrUnknownOutcome):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
