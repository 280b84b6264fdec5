package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/rpc"
)

const usage = `usage:
  apiserver snapshot save FILE --identity DIR --apiserver HOST:PORT[,HOST:PORT]
      saves the state of a running cluster to FILE (it contains all Secrets: mode 0600)
  apiserver snapshot status FILE [-o json]
      verifies FILE and shows what it contains
  apiserver snapshot restore FILE --data-dir DIR [--name NAME]
  apiserver snapshot restore FILE --members NAME,… --data-dir NAME=DIR,…
  apiserver snapshot restore FILE --members NAME,… --name NAME --data-dir DIR --token TOKEN
      creates the data directories of a new cluster from FILE, a snapshot of Keelson
      or of a Kubernetes cluster's etcd. Use the third form to restore on several machines,
      one after another, with a new token that is the same on all of them. The
      apiservers must not be running.
`

// Command runs "apiserver snapshot ARGS…" and returns the exit code: 2 for a usage error, 1 for
// any other error.
func Command(ctx context.Context, args []string, table *resource.Table, out, errOut io.Writer) int {
	c := &command{table: table, out: out, log: slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	fs := pflag.NewFlagSet("apiserver snapshot", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.identity, "identity", "", "directory with tls.crt, tls.key and ca.crt of a cluster administrator, or of an apiserver")
	fs.StringSliceVar(&c.apiservers, "apiserver", nil, "host:port of the apiservers' gRPC API")
	fs.DurationVar(&c.timeout, "timeout", saveTime, "maximum duration of a save")
	fs.StringSliceVar(&c.dirs, "data-dir", nil, "data directories to restore to, as DIR or NAME=DIR")
	fs.StringVar(&c.name, "name", "apiserver-0", "name of the apiserver for a --data-dir without a name")
	fs.StringSliceVar(&c.members, "members", nil, "names of all apiservers of the new cluster (NAME or NAME=…, as in the apiserver's flag of the same name); default: those of --data-dir")
	fs.StringVar(&c.token, "token", "", "identifies the new cluster: new for each restore and the same on all machines. Start it with the output of `date +%s`, so that apiservers of the old cluster stop when they meet the new one")
	fs.BoolVar(&c.setAside, "set-aside", false, "move existing data to before-restore-TIME in its directory")
	fs.StringVar(&c.work, "work-dir", "", "directory for the temporary files of status, which are as large as FILE; default: the system's")
	fs.StringVarP(&c.output, "output", "o", "", "output format: json; default: text")
	err := fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) || err == nil && fs.NArg() == 0 {
		fmt.Fprintf(errOut, "%s\nflags:\n%s", usage, fs.FlagUsages())
		return map[bool]int{true: 0, false: 2}[err != nil]
	}
	verbs := map[string]func(context.Context, string) error{"save": c.save, "status": c.status, "restore": c.restore}
	verb := verbs[fs.Arg(0)]
	switch {
	case err != nil:
	case verb == nil:
		err = fmt.Errorf("unknown verb %q: use save, status or restore", fs.Arg(0))
	case fs.NArg() != 2:
		err = fmt.Errorf("%s: expected one FILE", fs.Arg(0))
	case c.output != "" && c.output != "json":
		err = fmt.Errorf("-o %s: the only output format is json", c.output)
	}
	if err != nil {
		fmt.Fprintf(errOut, "apiserver snapshot: %v\n", err)
		return 2
	}
	if err := verb(ctx, fs.Arg(1)); err != nil {
		var wrong *callError
		fmt.Fprintf(errOut, "apiserver snapshot %s: %v\n", fs.Arg(0), oneLine(err))
		if errors.As(err, &wrong) {
			return 2
		}
		return 1
	}
	return 0
}

// callError is a usage error.
type callError struct{ error }

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

type command struct {
	table             *resource.Table
	out               io.Writer
	log               *slog.Logger
	identity          string
	apiservers        []string
	timeout           time.Duration
	dirs, members     []string
	name, token, work string
	setAside          bool
	output            string
}

func (c *command) save(ctx context.Context, file string) error {
	if c.identity == "" || len(c.apiservers) == 0 {
		return &callError{errors.New("--identity and --apiserver are required")}
	}
	id, err := identity.Load(c.identity)
	if err != nil {
		return &callError{fmt.Errorf("--identity: %w", err)}
	}
	conn, err := rpc.Dial(id, c.apiservers, "apiserver-snapshot")
	if err != nil {
		return &callError{fmt.Errorf("--apiserver: %w", err)}
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	saved, err := Save(ctx, conn, file)
	if err != nil {
		if st, ok := status.FromError(err); ok {
			return errors.New(st.Message())
		}
		return err
	}
	return c.show(saved, func(to io.Writer) error {
		_, err := fmt.Fprintf(to, "saved %s: %d bytes in %s, up to revision %d (etcd) and %d (raft)\n",
			saved.File, saved.Bytes, saved.Took.Round(time.Millisecond), saved.EtcdRevision, saved.RaftRevision)
		return err
	})
}

func (c *command) status(ctx context.Context, file string) error {
	s, err := ReadStatus(ctx, file, c.work, c.table)
	if err != nil {
		return err
	}
	return c.show(s, s.Print)
}

func (c *command) restore(ctx context.Context, file string) error {
	cfg := RestoreConfig{File: file, Dirs: map[string]string{}, Token: c.token, SetAside: c.setAside, Table: c.table, Log: c.log}
	for _, d := range c.dirs {
		name, dir, named := strings.Cut(d, "=")
		if !named {
			name, dir = c.name, d
		}
		if _, twice := cfg.Dirs[name]; twice || name == "" || dir == "" {
			return &callError{fmt.Errorf("--data-dir %s: specify one directory per member", d)}
		}
		cfg.Dirs[name] = dir
	}
	if len(cfg.Dirs) == 0 {
		return &callError{errors.New("--data-dir is required")}
	}
	for _, m := range c.members {
		name, _, _ := strings.Cut(m, "=")
		cfg.Members = append(cfg.Members, name)
	}
	if len(cfg.Members) == 0 {
		cfg.Members = keys(cfg.Dirs)
	}
	r, err := Restore(ctx, cfg)
	if err != nil {
		return err
	}
	return c.show(r, r.Print)
}

// show prints v as JSON if asked to, and otherwise calls text.
func (c *command) show(v any, text func(io.Writer) error) error {
	if c.output == "json" {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return text(c.out)
}
