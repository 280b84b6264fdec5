package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

// sample is what a process takes at one moment. Memory is in MiB.
type sample struct {
	at time.Duration // since the beginning of the measurement
	// pss is the proportional set size: the memory that the process maps alone, and its
	// share of what it maps with others; anon is the part of it that no file backs.
	pss, anon float64
	heap      float64       // Go's heap: live objects and those not yet collected
	peak      float64       // the highest resident set size so far
	cpu       time.Duration // user and system time since the process began
}

// take takes a sample of a process.
func take(c *cluster.Cluster, s cluster.Process, at time.Duration) (sample, error) {
	out := sample{at: at}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.PID))
	if err != nil {
		return out, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	if err != nil {
		return out, err
	}
	for field, to := range map[string]*float64{"Pss:": &out.pss, "Pss_Anon:": &out.anon, "VmHWM:": &out.peak} {
		if *to, err = kilobytes(append(rollup, status...), field); err != nil {
			return out, err
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
	if err != nil {
		return out, err
	}
	if out.cpu, err = cpuTime(stat); err != nil {
		return out, err
	}
	out.heap, err = heap(c, s)
	return out, err
}

// kilobytes returns a field, in kB, of the kernel's report on a process, in MiB.
func kilobytes(lines []byte, field string) (float64, error) {
	for line := range strings.Lines(string(lines)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == field && f[2] == "kB" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			return float64(n) / 1024, err
		}
	}
	return 0, fmt.Errorf("the kernel's report has no field %s", field)
}

// userHz is the unit of /proc/PID/stat's times, which Linux fixes for programs.
const userHz = 100

// cpuTime reads utime and stime, fields 14 and 15; the name in field 2 may hold
// anything, so counting begins after its parenthesis.
func cpuTime(stat []byte) (time.Duration, error) {
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("stat has %d fields", len(f))
	}
	var ticks uint64
	for _, s := range f[11:13] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHz, nil
}

// ops asks a service's operations socket.
func ops(ctx context.Context, c *cluster.Cluster, s cluster.Process, path string) (io.ReadCloser, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true, // it would cost the service a megabyte
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.Home, "run", s.Name+".ops"))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s%s: %s", s.Name, path, resp.Status)
	}
	return resp.Body, nil
}

func heap(c *cluster.Cluster, s cluster.Process) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	body, err := ops(ctx, c, s, "/metrics")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "go_memstats_heap_alloc_bytes "); ok {
			bytes, err := strconv.ParseFloat(v, 64)
			return bytes / (1 << 20), err
		}
	}
	return 0, fmt.Errorf("%s has no metric go_memstats_heap_alloc_bytes: %w", s.Name, lines.Err())
}

// profile writes a profile into -soak.profiles.
func profile(t *testing.T, c *cluster.Cluster, s cluster.Process, query, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	body, err := ops(ctx, c, s, "/debug/pprof/"+query)
	if err == nil {
		defer body.Close()
		var data []byte
		if data, err = io.ReadAll(body); err == nil {
			err = os.WriteFile(filepath.Join(*soakProfiles, t.Name()+"-"+s.Name+"."+name), data, 0o600)
		}
	}
	if err != nil {
		t.Errorf("profile of %s: %v", s.Name, err)
	}
}

// series are the samples of one service.
type series struct {
	service cluster.Process
	samples []sample
}

func (s *series) first() sample { return s.samples[0] }
func (s *series) last() sample  { return s.samples[len(s.samples)-1] }

// perMinute is the CPU time used per minute.
func (s *series) perMinute() time.Duration {
	a, b := s.first(), s.last()
	return time.Duration(float64(b.cpu-a.cpu) / (b.at - a.at).Minutes())
}

func (s *series) points(of func(sample) float64) []point {
	var out []point
	for _, p := range s.samples {
		out = append(out, point{p.at.Minutes(), of(p)})
	}
	return out
}

// total is the sum of all services, sample by sample.
func total(all []*series) *series {
	sum := &series{service: cluster.Process{Name: "sum"}, samples: make([]sample, len(all[0].samples))}
	for i := range sum.samples {
		to := &sum.samples[i]
		for _, s := range all {
			p := s.samples[i]
			to.at = p.at
			to.pss += p.pss
			to.anon += p.anon
			to.heap += p.heap
			to.peak += p.peak
			to.cpu += p.cpu
		}
	}
	return sum
}

// measure takes samples of the control plane every few seconds, from the end of the first
// minute to the end of the last, and checks that no process was restarted meanwhile.
func measure(t *testing.T, c *cluster.Cluster, began time.Time) (each []*series, sum *series) {
	t.Helper()
	services := controlPlane(t, c)
	for _, s := range services {
		each = append(each, &series{service: s})
	}
	if *soakProfiles != "" {
		if err := os.MkdirAll(*soakProfiles, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, s := range services {
			defer profile(t, c, s, "heap?gc=1", "heap")
		}
	}
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	end := time.Duration(*soakMinutes) * time.Minute
	for at := time.Since(began); at <= end; at = time.Since(began) {
		if at >= time.Minute {
			if *soakProfiles != "" && len(each[0].samples) == 0 {
				for _, s := range services {
					done := make(chan struct{})
					go func() { defer close(done); profile(t, c, s, "profile?seconds=30", "cpu") }()
					defer func() { <-done }()
				}
			}
			for _, s := range each {
				p, err := take(c, s.service, at)
				if err != nil {
					t.Fatalf("%s: %v", s.service.Name, err)
				}
				s.samples = append(s.samples, p)
			}
		}
		<-tick.C
	}
	for i, s := range controlPlane(t, c) {
		if s.PID != services[i].PID {
			t.Fatalf("%s was restarted: pid %d, then %d", s.Name, services[i].PID, s.PID)
		}
	}
	sum = total(each)
	if *soakProfiles != "" {
		if err := os.WriteFile(filepath.Join(*soakProfiles, t.Name()+".csv"), samples(append(each, sum)), 0o600); err != nil {
			t.Error(err)
		}
	}
	return each, sum
}

// samples is everything that was measured, as CSV, one sample a line.
func samples(all []*series) []byte {
	out := []byte("service,seconds,pss,anon,heap,peak,cpu\n")
	for _, s := range all {
		for _, p := range s.samples {
			out = fmt.Appendf(out, "%s,%.0f,%.1f,%.1f,%.1f,%.1f,%.2f\n", s.service.Name, p.at.Seconds(), p.pss, p.anon, p.heap, p.peak, p.cpu.Seconds())
		}
	}
	return out
}

// table is what was measured, as people read it. PEAK is resident memory since the
// process began; HEAP holds what Go has not collected yet: it goes up and down by
// half.
func table(each []*series, sum *series) string {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 4, 2, ' ', tabwriter.AlignRight)
	from, to := sum.first().at.Round(time.Second), sum.last().at.Round(time.Second)
	fmt.Fprintf(w, "SERVICE\tPEAK\tPSS %s\t%s\tSLOPE\t2ND HALF\tANON %s\t%s\tHEAP %s\t%s\tCPU\t\n", from, to, from, to, from, to)
	for _, s := range append(each, sum) {
		a, b := s.first(), s.last()
		fmt.Fprintf(w, "%s\t%.1f MB\t%.1f MB\t%.1f MB\t%+.2f MB/min\t%+.2f MB/min\t%.1f MB\t%.1f MB\t%.1f MB\t%.1f MB\t%.2f s/min\t\n", s.service.Name,
			b.peak, a.pss, b.pss, slope(s.points(pss)), slope(s.points(pss)[len(s.samples)/2:]), a.anon, b.anon, a.heap, b.heap, s.perMinute().Seconds())
	}
	_ = w.Flush()
	return out.String()
}

func pss(s sample) float64 { return s.pss }
