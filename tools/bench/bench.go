package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"keelson.dev/tools/internal/pki"
)

// bench runs one apiserver, which is started when a figure first needs it.
type bench struct {
	bin, dir string
	cmd      *exec.Cmd
	exited   chan error
	https    string
	grpc     string
	seq      atomic.Int64
	// cost is the server's CPU time per request of the last figure, or 0 if the figure has
	// none.
	cost time.Duration
}

func newBench(bin string) (*bench, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, "apiserver")); err != nil {
		return nil, fmt.Errorf("%w: run `make build`", err)
	}
	dir, err := os.MkdirTemp("", "keelson-bench-*")
	if err != nil {
		return nil, err
	}
	a, err := pki.Open(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}
	for _, id := range []pki.Identity{
		{Name: "apiserver", CommonName: "kube-apiserver", Organization: []string{"system:masters"}, Hosts: []string{"localhost", "127.0.0.1"}},
		{Name: "admin", CommonName: "bench", Organization: []string{"system:masters"}},
	} {
		if err := a.Ensure(id); err != nil {
			return nil, err
		}
	}
	return &bench{bin: bin, dir: dir}, pki.EnsureKey(filepath.Join(dir, "pki", "sa.key"))
}

func (b *bench) close() {
	b.stop()
	_ = os.RemoveAll(b.dir)
}

func (b *bench) stop() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.exited:
	case <-time.After(10 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.exited
	}
	b.cmd = nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start runs the apiserver and returns how long it took to answer /readyz.
func (b *bench) start(ctx context.Context) (time.Duration, error) {
	https, err := freePort()
	if err != nil {
		return 0, err
	}
	grpcPort, err := freePort()
	if err != nil {
		return 0, err
	}
	b.https, b.grpc = fmt.Sprintf("127.0.0.1:%d", https), fmt.Sprintf("127.0.0.1:%d", grpcPort)
	log, err := os.Create(filepath.Join(b.dir, "apiserver.log"))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	b.cmd = exec.Command(filepath.Join(b.bin, "apiserver"),
		"--identity", filepath.Join(b.dir, "pki", "apiserver"),
		"--data-dir", filepath.Join(b.dir, "data"),
		"--listen-https", b.https, "--listen-grpc", b.grpc, "--advertise-address", "127.0.0.1",
		"--service-account-key", filepath.Join(b.dir, "pki", "sa.key"),
		"--ops-address", "unix://"+filepath.Join(b.dir, "ops.sock"))
	b.cmd.Stdout, b.cmd.Stderr = log, log
	began := time.Now()
	if err := b.cmd.Start(); err != nil {
		return 0, err
	}
	b.exited = make(chan error, 1)
	cmd := b.cmd
	go func() { b.exited <- cmd.Wait() }()
	config, err := b.tls()
	if err != nil {
		return 0, err
	}
	probe := http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: time.Second}
	defer probe.CloseIdleConnections()
	for {
		if resp, err := probe.Get("https://" + b.https + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(began), nil
			}
		}
		select {
		case err := <-b.exited:
			b.exited <- err
			data, _ := os.ReadFile(log.Name())
			return 0, fmt.Errorf("the apiserver ended: %w\n%s", err, data)
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(began) > 30*time.Second {
			return 0, errors.New("the apiserver is not ready after 30 s")
		}
	}
}

// need starts the apiserver unless it is running.
func (b *bench) need(ctx context.Context) error {
	if b.cmd != nil {
		return nil
	}
	_, err := b.start(ctx)
	return err
}

// measureStart measures the time from the start of the apiserver, without data, until it is
// ready.
func measureStart(ctx context.Context, b *bench) (float64, string, error) {
	var times []time.Duration
	for range 5 {
		b.stop()
		if err := os.RemoveAll(filepath.Join(b.dir, "data")); err != nil {
			return 0, "", err
		}
		d, err := b.start(ctx)
		if err != nil {
			return 0, "", err
		}
		times = append(times, d)
	}
	slices.Sort(times)
	return float64(times[2].Milliseconds()), "empty data, median of 5", nil
}

func (b *bench) tls() (*tls.Config, error) {
	dir := filepath.Join(b.dir, "pki", "admin")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}, nil
}

// clientset returns a client-go client with typical settings: protobuf, one connection, and no
// rate limit.
func (b *bench) clientset() (*kubernetes.Clientset, error) {
	dir := filepath.Join(b.dir, "pki", "admin")
	return kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + b.https,
		QPS:  -1,
		ContentConfig: rest.ContentConfig{
			ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
		},
	})
}

func (b *bench) dial() (*grpc.ClientConn, error) {
	config, err := b.tls()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(b.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithUserAgent("bench"))
}

// namespace creates a namespace for one figure.
func (b *bench) namespace(ctx context.Context, c *kubernetes.Clientset) (string, error) {
	name := fmt.Sprintf("bench-%d", b.seq.Add(1))
	_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	// No controller is running that would create the default service account.
	_, err = c.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	return name, err
}

// pod returns a simple pod, which takes about 1 KiB in the store.
func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "bench", "tier": "load"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example/bench/app:1.0",
				Env:   []corev1.EnvVar{{Name: "MODE", Value: "bench"}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
				}},
			}},
		},
	}
}

// clockTick is the unit of CPU times in /proc: the kernel fixes USER_HZ at 100 on every
// architecture that Go supports.
const clockTick = 10 * time.Millisecond

// cpu returns the CPU time that the apiserver has used, or 0 if it is not running.
func (b *bench) cpu() time.Duration {
	if b.cmd == nil {
		return 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The program's name is in parentheses and may contain anything. utime and stime are fields
	// 14 and 15, that is, the 12th and 13th after it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	var total time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		total += time.Duration(n) * clockTick
	}
	return total
}

// rate is like the function rate. It also sets cost.
func (b *bench) rate(ctx context.Context, callers, n int, call func(ctx context.Context, i int) error) (float64, error) {
	before := b.cpu()
	r, err := rate(ctx, callers, n, call)
	b.cost = (b.cpu() - before) / time.Duration(n)
	return r, err
}

// rate makes n calls from the given number of goroutines and returns calls per second.
func rate(ctx context.Context, callers, n int, call func(ctx context.Context, i int) error) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failure error
	began := time.Now()
	for range callers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				if err := call(ctx, i); err != nil {
					once.Do(func() { failure = err; cancel() })
					return
				}
			}
		})
	}
	wg.Wait()
	if failure != nil {
		return 0, failure
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
