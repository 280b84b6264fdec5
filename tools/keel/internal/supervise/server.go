package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Server is the daemon that keeps the processes of a directory's specifications running.
type Server struct {
	dir Dir
	// stopSandboxes stops and removes the pods of a containerd.
	stopSandboxes func(ctx context.Context, socket string) error

	mu    sync.Mutex
	procs map[string]*process
	// stopping is set once a stop was requested. The daemon then starts no more processes, and
	// ends when all of them have ended.
	stopping bool
}

// NewServer returns the daemon of a directory.
func NewServer(dir Dir, stopSandboxes func(context.Context, string) error) *Server {
	return &Server{dir: dir, procs: map[string]*process{}, stopSandboxes: stopSandboxes}
}

// Run keeps the processes running until ctx ends or a stop is requested. If ctx ends, the
// processes continue for the next supervisor to adopt; a stop ends them.
func (s *Server) Run(ctx context.Context) error {
	lock, err := os.OpenFile(s.dir.socket()+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.lock(ctx, lock); err != nil {
		return err
	}
	_ = os.Remove(s.dir.socket())
	listener, err := net.Listen("unix", s.dir.socket())
	if err != nil {
		return err
	}
	if err := s.reload(); err != nil {
		listener.Close()
		return err
	}
	stopped := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(s.status(r.Context()))
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		switch err := s.reload(); {
		case errors.Is(err, errStopping):
			http.Error(w, err.Error(), http.StatusGone)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	var once sync.Once
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		if err := s.stop(context.WithoutCancel(r.Context())); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		once.Do(func() { close(stopped) })
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	case <-stopped:
	}
	shutdown, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = server.Shutdown(shutdown)
	<-served
	return nil
}

// succession is how long a new supervisor waits for one that is ending.
const succession = 5 * time.Second

// lock makes this the only supervisor of its directory.
func (s *Server) lock(ctx context.Context, file *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, succession)
	defer cancel()
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		other := s.dir.Reload(ctx)
		if other == nil || ctx.Err() != nil {
			return fmt.Errorf("another supervisor is running for %s", s.dir)
		}
		select { // the other one is ending
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// reload starts, restarts and stops processes until those running match the specifications.
func (s *Server) reload() error {
	specs, err := s.dir.ReadSpecs()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errStopping
	}
	want := map[string]Spec{}
	for _, spec := range specs {
		want[spec.Name] = spec
	}
	// Changed processes restart and their pods keep running. Processes that are no longer
	// wanted stop, and their pods with them.
	var changing, going []*process
	for name, p := range s.procs {
		switch spec, ok := want[name]; {
		case !ok:
			going = append(going, p)
		case spec.hash() != p.spec.hash():
			p.cancel()
			changing = append(changing, p)
			delete(s.procs, name)
		}
	}
	if err := s.end(context.Background(), going); err != nil {
		fmt.Fprintln(os.Stderr, "supervisor:", err) // the caller removes what is left
	}
	for _, p := range changing {
		<-p.done
	}
	for _, spec := range specs {
		if s.procs[spec.Name] == nil {
			s.procs[spec.Name] = start(s.dir, spec)
		}
	}
	return nil
}

// stop stops every process in the order of the specifications, and the pods of the nodes.
func (s *Server) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	return s.end(ctx, slices.Collect(maps.Values(s.procs)))
}

// end stops processes in their StopOrder, and the pods of the nodes among them. The caller
// holds s.mu.
func (s *Server) end(ctx context.Context, procs []*process) error {
	byOrder := map[int][]*process{}
	for _, p := range procs {
		byOrder[p.spec.StopOrder] = append(byOrder[p.spec.StopOrder], p)
	}
	var errs []error
	for _, order := range slices.Sorted(maps.Keys(byOrder)) {
		for _, p := range byOrder[order] {
			p.cancel()
		}
		for _, p := range byOrder[order] {
			<-p.done
			delete(s.procs, p.spec.Name)
			if p.spec.Sandboxes != "" {
				if err := s.stopSandboxes(ctx, p.spec.Sandboxes); err != nil {
					errs = append(errs, fmt.Errorf("pods of %s: %w", p.spec.Name, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// status returns the state of all processes in the reverse of their StopOrder.
func (s *Server) status(ctx context.Context) []Status {
	s.mu.Lock()
	procs := make([]*process, 0, len(s.procs))
	for _, p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	sort.Slice(procs, func(i, j int) bool {
		a, b := procs[i].spec, procs[j].spec
		if a.StopOrder != b.StopOrder {
			return a.StopOrder > b.StopOrder
		}
		return a.Name < b.Name
	})
	out := make([]Status, len(procs))
	var wg sync.WaitGroup
	for i, p := range procs {
		wg.Go(func() { out[i] = p.status(ctx) })
	}
	wg.Wait()
	return out
}

func (p *process) status(ctx context.Context) Status {
	p.mu.Lock()
	st := Status{Name: p.spec.Name, PID: p.pid, GRPC: p.spec.GRPC, HTTPS: p.spec.HTTPS, Restarts: p.restarts, Log: p.spec.Log}
	lastErr := p.lastErr
	p.mu.Unlock()
	if st.PID == 0 {
		st.Reason = "not running: " + lastErr
		return st
	}
	warnings, err := p.healthy(ctx)
	if err != nil {
		st.Reason = err.Error()
		return st
	}
	st.Healthy, st.Reason = true, warnings
	return st
}

// healthy returns nil if the process is ready, or the reason why it is not. A process that is
// ready may have warnings.
func (p *process) healthy(ctx context.Context) (warnings string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	if p.spec.Health == "" {
		network := "unix"
		if !strings.HasPrefix(p.spec.Socket, "/") {
			network = "tcp"
		}
		conn, err := d.DialContext(ctx, network, p.spec.Socket)
		if err != nil {
			return "", err
		}
		return "", conn.Close()
	}
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", p.spec.Health)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://service/readyz?verbose", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(failedChecks(string(body)))
	}
	return warned(string(body)), nil
}

// warned returns the warnings of a /readyz response.
func warned(body string) string {
	var list []string
	for line := range strings.Lines(body) {
		if _, text, ok := strings.Cut(line, " ok: warning: "); ok && strings.HasPrefix(line, "[+]") {
			list = append(list, strings.TrimSpace(text))
		}
	}
	return strings.Join(list, "; ")
}

// failedChecks returns the failed checks of a /readyz response.
func failedChecks(body string) string {
	var failed []string
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "[-]"); ok {
			failed = append(failed, strings.TrimSpace(rest))
		}
	}
	if len(failed) == 0 {
		return "not ready"
	}
	return strings.Join(failed, "; ")
}
