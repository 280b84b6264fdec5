package raft

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// children are the roles that this test binary takes when it is started as a child.
var children map[string]func()

func init() { children = map[string]func(){"writer": childWriter, "voter": childVoter} }

// child starts this binary as a child. kill ends it with SIGKILL.
func child(t *testing.T, role, dir string, env ...string) (lines <-chan string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "RAFT_TEST_CHILD="+role, "RAFT_TEST_DIR="+dir), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := make(chan string, 100000)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(c)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			c <- sc.Text()
		}
	}()
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	return c, kill
}

// childWriter writes, and prints what was acknowledged.
func childWriter() {
	s, err := Open(context.Background(), Config{Name: "a", Dir: os.Getenv("RAFT_TEST_DIR"), Log: quiet(), SnapshotBytes: 100 << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("/k/%s/%d/%d", os.Getenv("RAFT_TEST_ROUND"), g, i)
				v, err := s.Commit(context.Background(), []store.Write{{Key: key, Value: []byte(key)}})
				if err != nil || v[0].Err != nil {
					fmt.Fprintln(os.Stderr, err, v)
					os.Exit(1)
				}
				fmt.Printf("%s %d\n", key, v[0].Revision)
			}
		})
	}
	wg.Wait()
}

func TestAnAcknowledgementOutlivesKill(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]store.Revision{}
	for round := range 4 {
		lines, kill := child(t, "writer", dir, fmt.Sprint("RAFT_TEST_ROUND=", round))
		note := func(line string) {
			key, rev, ok := strings.Cut(line, " ")
			n, err := strconv.Atoi(rev)
			if !ok || err != nil {
				return // cut off by the kill
			}
			acked[key] = store.Revision(n)
		}
		snapshots := func() int {
			found, err := filepath.Glob(filepath.Join(dir, "snapshots", "*-*[0-9]"))
			if err != nil {
				t.Fatal(err)
			}
			return len(found)
		}
		for n := 0; n < 500+1000*round || round == 3 && snapshots() == 0; n++ {
			line, running := <-lines
			if !running {
				t.Fatal("the child ended too early")
			}
			note(line)
		}
		kill()
		for line := range lines {
			note(line)
		}
		s := single(t, Config{Dir: dir})
		page, err := s.List(context.Background(), "/k/", store.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]store.Revision{}
		for _, e := range page.Entries {
			if string(e.Value) != e.Key {
				t.Fatalf("the value of %s is %q", e.Key, e.Value)
			}
			found[e.Key] = e.ModRevision
		}
		for key, rev := range acked {
			if found[key] != rev {
				t.Fatalf("round %d: %s was acknowledged at %d, but is at %d", round, key, rev, found[key])
			}
		}
		s.Close()
	}
	t.Logf("%d acknowledged writes", len(acked))
}

// childVoter is a member of a cluster of which the test plays the other members.
func childVoter() {
	service := NewService(func(context.Context) error { return nil })
	server := grpc.NewServer()
	service.Register(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() { _ = server.Serve(l) }()
	fmt.Println(l.Addr())
	_, err = Open(context.Background(), Config{
		Name: "b", Members: []string{"a", "b", "c"}, Dir: os.Getenv("RAFT_TEST_DIR"), Service: service, Log: quiet(),
		Dial: func(member string) (grpc.ClientConnInterface, error) {
			return nil, fmt.Errorf("member %s cannot be reached", member)
		},
	})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// voter starts a child, and returns a client of it and its identity.
func voter(t *testing.T, dir string) (raftv1.RaftServiceClient, *raftv1.IdentifyResponse, func()) {
	t.Helper()
	lines, kill := child(t, "voter", dir)
	conn, err := grpc.NewClient(<-lines, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := raftv1.NewRaftServiceClient(conn)
	var voting *raftv1.IdentifyResponse
	eventually(t, "the child answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		voting, err = client.Identify(ctx, &raftv1.IdentifyRequest{})
		return err == nil
	})
	return client, voting, kill
}

func TestAVoteOutlivesKillAndIsNotInheritedByAnEmptiedDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	vote := func(client raftv1.RaftServiceClient, target, candidate string, term uint64) (bool, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r, err := client.RequestVote(ctx, &raftv1.RequestVoteRequest{
			Header: &raftv1.Header{Target: target, ProtocolVersion: 3, Id: []byte(candidate), Address: []byte(candidate)},
			Term:   term, LastLogIndex: 10, LastLogTerm: 3,
		})
		return r.GetGranted(), err
	}
	client, voting, kill := voter(t, dir)
	if len(voting.Members) > 0 {
		t.Fatal("an empty disk reports a membership")
	}
	if ok, err := vote(client, voting.Id, "a/1", 5); err != nil || !ok {
		t.Fatalf("first vote: %v %v", ok, err)
	}
	kill()
	client, again, kill := voter(t, dir)
	if again.Id != voting.Id {
		t.Fatalf("%s became %s", voting.Id, again.Id)
	}
	if ok, err := vote(client, voting.Id, "c/1", 5); err != nil || ok {
		t.Fatalf("second vote in the same term: %v %v", ok, err)
	}
	if ok, err := vote(client, voting.Id, "a/1", 5); err != nil || !ok {
		t.Fatalf("repeated vote: %v %v", ok, err)
	}
	kill()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	client, emptied, _ := voter(t, dir)
	if emptied.Id == voting.Id || len(emptied.Members) > 0 {
		t.Fatalf("after its disk was emptied: %v", emptied)
	}
	if ok, err := vote(client, voting.Id, "c/1", 5); status.Code(err) != codes.FailedPrecondition || ok {
		t.Fatalf("vote requested under the old id: %v %v", ok, err)
	}
}
