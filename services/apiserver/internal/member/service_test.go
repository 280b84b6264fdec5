package member

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/store/raft"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a control plane of real services with a fake etcd and a fake raft store.
type site struct {
	testing.TB
	store *memory.Store

	mu sync.Mutex
	// voters and learners are etcd's. The raft store has the same members unless raft is set.
	voters, learners []string
	raft             []string
	leader           string
	addresses        map[string]string
	removed          []string
	// early lists the members whose process ended while they were still members.
	early    []string
	retired  atomic.Int32
	over     chan struct{}
	wg       sync.WaitGroup
	services map[string]*Service
	servers  map[string]*grpc.Server
	stopped  map[string]bool
}

// newSite starts a member for each name.
func newSite(t testing.TB, names ...string) *site {
	t.Helper()
	s := &site{
		TB: t, store: memory.New(), voters: names, leader: names[0], over: make(chan struct{}),
		addresses: map[string]string{}, services: map[string]*Service{}, servers: map[string]*grpc.Server{}, stopped: map[string]bool{},
	}
	for _, n := range names {
		s.start(n)
	}
	t.Cleanup(func() {
		close(s.over)
		s.wg.Wait()
		for _, v := range s.services {
			v.Close()
		}
		for _, v := range s.servers {
			v.Stop()
		}
		s.store.Close()
	})
	return s
}

// start starts a member.
func (s *site) start(name string) {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	fake := &fakeMember{site: s, name: name}
	v := NewService(Config{Name: name, Etcd: fake, Store: s.store, Dial: func(to string) (grpc.ClientConnInterface, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		c, err := grpc.NewClient(s.addresses[to], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
		return &line{c, s, to}, err
	}, askTime: 30 * time.Second})
	v.Serve(&fakeRaft{fake})
	server := grpc.NewServer()
	v.RegisterPeers(server, func(context.Context) error { return nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[name], s.servers[name], s.addresses[name] = v, server, l.Addr().String()
	go func() { _ = server.Serve(l) }()
	s.wg.Go(func() {
		select {
		case <-v.Retired():
			s.retired.Add(1)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			v.Depart(ctx, fake.Leads, func(context.Context) { s.elect(name) })
			s.mu.Lock()
			if slices.Contains(s.voters, name) {
				s.early = append(s.early, name)
			}
			s.mu.Unlock()
			server.GracefulStop()
		case <-s.over:
		}
	})
}

// elect makes a member other than instead the leader.
func (s *site) elect(instead string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.voters {
		if n != instead {
			s.leader = n
		}
	}
}

// stop stops a member's server.
func (s *site) stop(name string) {
	s.mu.Lock()
	s.stopped[name] = true
	s.mu.Unlock()
	s.servers[name].Stop()
}

// line is a connection to a member. Calls to a stopped member fail at once, so that the timeout
// for those that answer can be long, however busy the machine is.
type line struct {
	*grpc.ClientConn
	site *site
	to   string
}

func (l *line) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	l.site.mu.Lock()
	stopped := l.site.stopped[l.to]
	l.site.mu.Unlock()
	if stopped {
		return status.Error(codes.Unavailable, "stopped")
	}
	return l.ClientConn.Invoke(ctx, method, args, reply, opts...)
}

// at returns the MemberService of one member.
func (s *site) at(name string) *server {
	return &server{Service: s.services[name], may: func(context.Context, string, string) error { return nil }}
}

// fakeMember is a member of the fake etcd.
type fakeMember struct {
	*site
	name string
}

func (f *fakeMember) Members(context.Context) (out []etcd.Member, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.voters {
		out = append(out, etcd.Member{Name: n, Leader: n == f.leader, Self: n == f.name})
	}
	for _, n := range f.learners {
		out = append(out, etcd.Member{Name: n, Learner: true})
	}
	return out, nil
}

func (f *fakeMember) Remove(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.voters) == 2 && slices.Contains(f.early, name) {
		return errors.New("no majority")
	}
	gone := func(n string) bool { return n == name }
	f.voters, f.learners = slices.DeleteFunc(f.voters, gone), slices.DeleteFunc(f.learners, gone)
	f.removed = append(f.removed, name)
	return nil
}

func (f *fakeMember) Names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Concat(f.voters, f.learners)
}

func (f *fakeMember) Known() (out []etcd.Known) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, a := range f.addresses {
		out = append(out, etcd.Known{Name: n, Service: a, Address: "etcd." + a})
	}
	return out
}

func (f *fakeMember) Leads() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader == f.name
}

func (f *fakeMember) Applied() uint64 { return 7 }
func (f *fakeMember) Health() error   { return nil }

type fakeRaft struct{ *fakeMember }

func (f *fakeRaft) Status() (out raft.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := f.voters
	if f.raft != nil {
		names = f.raft
	}
	for _, n := range names {
		out.Members = append(out.Members, raft.Member{Name: n, Voter: true})
	}
	return out
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestRefuse(t *testing.T) {
	voter := func(name string, healthy bool) *memberv1.Member {
		return &memberv1.Member{Name: name, Healthy: healthy, Etcd: memberv1.Role_ROLE_VOTER, Raft: memberv1.Role_ROLE_VOTER}
	}
	learner := &memberv1.Member{Name: "l", Etcd: memberv1.Role_ROLE_LEARNER, Raft: memberv1.Role_ROLE_ABSENT}
	raftDead := voter("b", true)
	raftDead.Etcd = memberv1.Role_ROLE_ABSENT // a voter of the raft store only
	raftDead.Healthy = false
	for _, row := range []struct {
		name string
		all  []*memberv1.Member
		goes string
		says string // empty: it may be removed
	}{
		{"one of three", []*memberv1.Member{voter("a", true), voter("b", true), voter("c", true)}, "a", ""},
		{"the dead one of three", []*memberv1.Member{voter("a", false), voter("b", true), voter("c", true)}, "a", ""},
		{"a healthy one of three with a dead one", []*memberv1.Member{voter("a", false), voter("b", true), voter("c", true)}, "b", "bring a back"},
		{"one of two", []*memberv1.Member{voter("a", true), voter("b", true)}, "a", ""},
		{"the dead one of two, whose vote is needed", []*memberv1.Member{voter("a", false), voter("b", true)}, "a", "bring a back"},
		{"the last member", []*memberv1.Member{voter("a", true)}, "a", "only voter"},
		{"a learner beside the last member", []*memberv1.Member{voter("a", true), learner}, "l", ""},
		{"the last voter beside a learner", []*memberv1.Member{voter("a", true), learner}, "a", "only voter"},
		{"one of four with a dead one", []*memberv1.Member{voter("a", false), voter("b", true), voter("c", true), voter("d", true)}, "b", ""},
		{"one of five with two dead ones", []*memberv1.Member{voter("a", false), voter("b", false), voter("c", true), voter("d", true), voter("e", true)}, "c", "bring a, b back"},
		{"one whose removal costs the raft store its quorum", []*memberv1.Member{voter("a", true), raftDead, voter("c", true)}, "a", "the raft store"},
		{"an unknown name", []*memberv1.Member{voter("a", false), voter("b", false), voter("c", true)}, "x", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := refuse(row.all, row.goes)
			if (err == nil) != (row.says == "") || err != nil && (!errors.Is(err, errRefused) || !strings.Contains(err.Error(), row.says)) {
				t.Errorf("%v, want %q", err, row.says)
			}
		})
	}
}

func TestJoin(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	ctx := within(t, 30*time.Second)
	good := &memberv1.JoinRequest{Name: "d", PeerAddress: "10.0.0.4:1", EtcdAddress: "10.0.0.4:2"}
	for _, bad := range []*memberv1.JoinRequest{
		{Name: "", PeerAddress: "h:1", EtcdAddress: "h:2"},
		{Name: "D", PeerAddress: "h:1", EtcdAddress: "h:2"},
		{Name: "../d", PeerAddress: "h:1", EtcdAddress: "h:2"},
		{Name: "d", PeerAddress: ":1", EtcdAddress: "h:2"},
		{Name: "d", PeerAddress: "h:1", EtcdAddress: "h"},
		{Name: "d", PeerAddress: "h:1", EtcdAddress: "h:0"},
		{Name: "d", PeerAddress: strings.Repeat("h", 300) + ":1", EtcdAddress: "h:2"},
	} {
		if _, err := s.at("a").Join(ctx, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if s.services["b"].Admitted(ctx, "d") {
		t.Fatal("d was admitted before it asked to join")
	}
	// A request of an apiserver that is not to be a member changes nothing.
	r, err := s.at("a").Join(ctx, &memberv1.JoinRequest{Client: true})
	if err != nil || len(r.Members) != 3 || r.Members[0].PeerAddress == "" {
		t.Fatal(r, err)
	}
	for range 2 { // a reply may be lost
		if r, err = s.at("a").Join(ctx, good); err != nil || len(r.Members) != 3 {
			t.Fatal(r, err)
		}
	}
	if !s.services["b"].Admitted(ctx, "d") || s.services["b"].Admitted(ctx, "e") {
		t.Error("another member does not admit d, or also admits e")
	}
	// A name in use is refused to another address, but its owner may join again.
	taken := &memberv1.JoinRequest{Name: "b", PeerAddress: "10.0.0.4:1", EtcdAddress: "10.0.0.4:2"}
	if _, err := s.at("a").Join(ctx, taken); status.Code(err) != codes.AlreadyExists {
		t.Errorf("join with the name of a running member: %v", err)
	}
	taken.PeerAddress = s.addresses["b"]
	if _, err := s.at("a").Join(ctx, taken); err != nil {
		t.Errorf("join again with its own name: %v", err)
	}
	// A member that does not answer can be replaced by a new one of the same name.
	s.stop("c")
	taken.Name, taken.PeerAddress = "c", "10.0.0.4:1"
	if _, err := s.at("a").Join(ctx, taken); err != nil {
		t.Errorf("join with the name of a member that does not answer: %v", err)
	}
}

func TestJoinRefusesAnEighthMember(t *testing.T) {
	s := newSite(t, "a", "b", "c", "d", "e", "f", "g")
	r := &memberv1.JoinRequest{Name: "h", PeerAddress: "10.0.0.4:1", EtcdAddress: "10.0.0.4:2"}
	if _, err := s.at("a").Join(within(t, 10*time.Second), r); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--member=false") {
		t.Error(err)
	}
}

func TestLeave(t *testing.T) {
	s := newSite(t, "a", "b", "c", "d")
	ctx := within(t, 60*time.Second)
	if err := s.services["a"].admit(ctx, &memberv1.JoinRequest{Name: "b", PeerAddress: s.addresses["b"]}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a reply may be lost
		if _, err := s.at("c").Leave(ctx, &memberv1.LeaveRequest{Name: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	if s.services["a"].Admitted(ctx, "b") {
		t.Error("b has left and is still admitted")
	}
	// A member that is asked to remove itself has another do it, so that it can answer.
	if _, err := s.at("a").Leave(ctx, &memberv1.LeaveRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if n := s.retired.Load(); n != 1 {
		t.Errorf("%d members had retired, want only b", n)
	}
	s.stop("c")
	_, err := s.at("d").Leave(ctx, &memberv1.LeaveRequest{Name: "d"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("the last healthy member left: %v", err)
	}
	if !slices.Equal(s.voters, []string{"c", "d"}) {
		t.Errorf("voters are %v, want c and d", s.voters)
	}
	// Of two members, neither can be removed without the vote of the other.
	if _, err := s.at("d").Leave(ctx, &memberv1.LeaveRequest{Name: "c"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "recover") {
		t.Errorf("remove the one that is down: %v", err)
	}
	if _, err := s.at("d").Leave(ctx, &memberv1.LeaveRequest{Name: "no/name"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// Each of two changes is harmless alone; together they would cost the quorum.
func TestChangesAreSerialized(t *testing.T) {
	s := newSite(t, "a", "b", "c", "d")
	s.stop("d")
	ctx := within(t, 60*time.Second)
	errs := make(chan error, 2)
	for at, goes := range map[string]string{"a": "b", "b": "c"} {
		go func() {
			_, err := s.at(at).Leave(ctx, &memberv1.LeaveRequest{Name: goes})
			errs <- err
		}()
	}
	first, second := <-errs, <-errs
	if (first == nil) == (second == nil) {
		t.Fatalf("%v and %v; voters are %v", first, second, s.voters)
	}
	if len(s.removed) != 1 {
		t.Errorf("removed %v", s.removed)
	}
}

// When the leader of two members leaves, it hands over and keeps its vote until the other has
// removed it.
func TestTheLeaderOfTwoLeaves(t *testing.T) {
	s := newSite(t, "a", "b")
	ctx := within(t, 60*time.Second)
	if _, err := s.at("b").Leave(ctx, &memberv1.LeaveRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.early) > 0 || s.leader != "b" || !slices.Equal(s.voters, []string{"b"}) {
		t.Errorf("ended before their removal: %v; leader %s of voters %v", s.early, s.leader, s.voters)
	}
}

func TestLeaveWaitsForTheRaftStore(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.raft = []string{"a", "b", "c"}
	short := within(t, 500*time.Millisecond)
	if _, err := s.at("a").Leave(short, &memberv1.LeaveRequest{Name: "c"}); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("Leave returned before the raft store removed c: %v", err)
	}
	s.mu.Lock()
	s.raft = nil
	s.mu.Unlock()
	if _, err := s.at("a").Leave(within(t, 30*time.Second), &memberv1.LeaveRequest{Name: "c"}); err != nil {
		t.Fatal(err)
	}
}

func TestReplace(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.learners = []string{"d"}
	s.start("d")
	short := within(t, 500*time.Millisecond)
	if _, err := s.at("a").Replace(short, &memberv1.ReplaceRequest{Old: "b", New: "d"}); status.Code(err) != codes.DeadlineExceeded || len(s.removed) > 0 {
		t.Fatalf("replaced by a learner: error %v, removed %v", err, s.removed)
	}
	s.mu.Lock()
	s.voters, s.learners = append(s.voters, "d"), nil
	s.mu.Unlock()
	ctx := within(t, 30*time.Second)
	for range 2 {
		if _, err := s.at("a").Replace(ctx, &memberv1.ReplaceRequest{Old: "b", New: "d"}); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(s.voters, []string{"a", "c", "d"}) {
		t.Errorf("voters are %v", s.voters)
	}
	if _, err := s.at("a").Replace(ctx, &memberv1.ReplaceRequest{Old: "a", New: "a"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.stop("c")
	r, err := s.at("b").List(within(t, 30*time.Second), &memberv1.ListRequest{})
	if err != nil || len(r.Members) != 3 {
		t.Fatal(r, err)
	}
	a, c := r.Members[0], r.Members[2]
	if !a.Healthy || !a.LeadsEtcd || a.Etcd != memberv1.Role_ROLE_VOTER || a.Raft != memberv1.Role_ROLE_VOTER || a.PeerAddress != s.addresses["a"] {
		t.Errorf("a is %v", a)
	}
	if c.Healthy || c.LeadsEtcd || c.Problem == "" {
		t.Errorf("c is %v", c)
	}
}

// rights is an authorizer that allows every user one verb.
type rights string

func (r rights) Authorize(_ context.Context, a *request.Attributes) (bool, string, error) {
	return a.Verb == string(r) && a.Resource == Resource, "", nil
}

func TestRights(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	ctx := within(t, 30*time.Second)
	join := &memberv1.JoinRequest{Name: "d", PeerAddress: "10.0.0.4:1", EtcdAddress: "10.0.0.4:2"}
	for _, allowed := range []string{"list", "create", "delete", "get"} {
		v := &server{Service: s.services["a"], may: authorized(rights(allowed))}
		for verb, call := range map[string]func() error{
			"list":   func() error { _, err := v.List(ctx, &memberv1.ListRequest{}); return err },
			"create": func() error { _, err := v.Join(ctx, join); return err },
			"delete": func() error { _, err := v.Leave(ctx, &memberv1.LeaveRequest{Name: "nobody"}); return err },
		} {
			if err := call(); (status.Code(err) == codes.PermissionDenied) == (verb == allowed) {
				t.Errorf("%s with the right to %s: %v", verb, allowed, err)
			}
		}
		if allowed == "delete" {
			continue // it would wait until d is a voter
		}
		if _, err := v.Replace(ctx, &memberv1.ReplaceRequest{Old: "a", New: "d"}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("replace with the right to %s: %v", allowed, err)
		}
	}
	for _, call := range []func(*peerServer) error{
		func(v *peerServer) error { _, err := v.Status(ctx, nil); return err },
		func(v *peerServer) error { _, err := v.Retire(ctx, nil); return err },
	} {
		no := status.Error(codes.PermissionDenied, "no")
		if err := call(&peerServer{Service: s.services["a"], allow: func(context.Context) error { return no }}); !errors.Is(err, no) {
			t.Errorf("a caller that is not a member got: %v", err)
		}
	}
}
