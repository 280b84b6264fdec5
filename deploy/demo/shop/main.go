// Command shop is the demonstration application's own service: it keeps notes in
// PostgreSQL, counts visits in redis, and shows both on a page.
//
//	shop serve    serve HTTP on :8080
//	shop migrate  make the tables, then end
package main

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: shop serve | shop migrate")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1]); err != nil {
		slog.ErrorContext(ctx, "shop ended", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb string) error {
	db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer db.Close()
	switch verb {
	case "migrate":
		return migrate(ctx, db)
	case "serve":
		cache := redis.NewClient(&redis.Options{Addr: os.Getenv("REDIS_ADDR"), MaxRetries: 5})
		defer cache.Close()
		return serve(ctx, &shop{db: db, cache: cache, version: os.Getenv("SHOP_VERSION"), pod: os.Getenv("POD_NAME"), node: os.Getenv("NODE_NAME")})
	}
	return fmt.Errorf("%q: want serve or migrate", verb)
}

func migrate(ctx context.Context, db *pgxpool.Pool) error {
	for {
		_, err := db.Exec(ctx, `create table if not exists notes (id serial primary key, text text not null, at timestamptz not null default now())`)
		if err == nil {
			slog.InfoContext(ctx, "tables are there")
			return nil
		}
		slog.InfoContext(ctx, "waiting for the database", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

type shop struct {
	db                 *pgxpool.Pool
	cache              *redis.Client
	version, pod, node string
}

func serve(ctx context.Context, s *shop) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("POST /notes", s.add)
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n", s.version, s.pod, s.node)
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	slog.InfoContext(ctx, "serving", "version", s.version)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Requests under way are answered; new ones no longer come here.
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

func (s *shop) ready(w http.ResponseWriter, r *http.Request) {
	if err := errors.Join(s.db.Ping(r.Context()), s.cache.Ping(r.Context()).Err()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *shop) add(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
	if err != nil || len(text) == 0 {
		http.Error(w, "send the note's text as the body, at most 4 KiB", http.StatusBadRequest)
		return
	}
	var id int
	if err := s.db.QueryRow(r.Context(), `insert into notes (text) values ($1) returning id`, string(text)).Scan(&id); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "%d\n", id)
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<title>Keelson's demonstration</title>
<h1>It works</h1>
<p>Version {{.Version}}, served by {{.Pod}} on {{.Node}}. Visit {{.Visits}}.</p>
<p>{{len .Notes}} notes in PostgreSQL{{if .Notes}}:{{end}}</p>
<ul>{{range .Notes}}
<li>{{.}}</li>{{end}}
</ul>
`))

func (s *shop) page(w http.ResponseWriter, r *http.Request) {
	visits, err := s.cache.Incr(r.Context(), "visits").Result()
	if err != nil {
		http.Error(w, "redis: "+err.Error(), http.StatusBadGateway)
		return
	}
	rows, err := s.db.Query(r.Context(), `select text from notes order by id desc limit 20`)
	if err != nil {
		http.Error(w, "postgres: "+err.Error(), http.StatusBadGateway)
		return
	}
	notes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		http.Error(w, "postgres: "+err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = page.Execute(w, map[string]any{
		"Version": s.version, "Pod": s.pod, "Node": s.node, "Visits": visits, "Notes": notes,
	})
}
