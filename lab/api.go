package lab

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// nobody is the user and group that the lab's own servers become.
const nobody = 65534

// products is how many products the shop has.
const products = 1000

// Product is what the shop sells, as its API answers.
type Product struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	Cents int    `json:"cents"`
	// Source says where the answer came from: "db" or "cache".
	Source string `json:"source,omitempty"`
}

// Evidence is the answer to /check: what the database and the cache gave back
// for a word that was written to both by this very request.
type Evidence struct {
	Nonce string `json:"nonce"`
	DB    string `json:"db"`
	Cache string `json:"cache"`
	// Rows counts the words that the database has been given so far.
	Rows int `json:"rows"`
}

// ServeAPI is the api workload, run as "bocage lab-api" in its namespace until
// the context ends: a shop's API over PostgreSQL and Redis.
//
//	GET /products/{id}   from the cache, or the database and into the cache
//	GET /search?q=       products by name, from the database
//	GET /check?nonce=    writes to both and reads back
//	GET /ping            says pong, asks nobody
func ServeAPI(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("lab-api", flag.ContinueOnError)
	listen := flags.String("listen", ":8080", "address to listen on")
	db := flags.String("db", "", "URL of the database")
	cache := flags.String("cache", "", "address of the cache")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := dropPrivilege(); err != nil {
		return err
	}
	pool, err := openDB(ctx, *db)
	if err != nil {
		return err
	}
	defer pool.Close()
	shop := &shopAPI{db: pool, cache: newRESP(*cache)}
	defer shop.cache.Close()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	server := &http.Server{Handler: shop.routes(), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

// dropPrivilege makes the whole process an ordinary user, if it is root.
func dropPrivilege() error {
	if syscall.Getuid() != 0 {
		return nil
	}
	if err := errors.Join(syscall.Setgroups([]int{nobody}), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
		return fmt.Errorf("become user %d: %w", nobody, err)
	}
	return nil
}

// openDB connects, and fills an empty database. It tries until it succeeds or
// the context ends, since the database starts at the same time.
func openDB(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	config.MaxConns, config.MinConns = 8, 1
	config.MaxConnLifetime, config.MaxConnIdleTime = 24*time.Hour, 24*time.Hour // they are to be long-lived
	config.ConnConfig.ConnectTimeout = 2 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	err = await(ctx, nil, func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `
				CREATE TABLE IF NOT EXISTS products (id int PRIMARY KEY, name text NOT NULL, cents int NOT NULL);
				CREATE TABLE IF NOT EXISTS checks (id bigserial PRIMARY KEY, nonce text NOT NULL, made timestamptz NOT NULL DEFAULT now());
				INSERT INTO products SELECT i, 'product ' || i, 100 + i * 7 % 900 FROM generate_series(1, `+strconv.Itoa(products)+`) i
				ON CONFLICT DO NOTHING`)
			return err
		})
	})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

// shopAPI answers the shop's requests.
type shopAPI struct {
	db    *pgxpool.Pool
	cache *resp
}

// cacheTime is how long a product stays in the cache: short, so that both the
// cache and the database always have something to do.
const cacheTime = 2 * time.Second

func (s *shopAPI) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "pong\n") })
	mux.HandleFunc("GET /products/{id}", answer(s.product))
	mux.HandleFunc("GET /search", answer(s.search))
	mux.HandleFunc("GET /check", answer(s.check))
	return mux
}

// answer turns a function that returns a value into a handler that writes it.
func answer[T any](find func(r *http.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		value, err := find(r)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			http.Error(w, "not found", http.StatusNotFound)
		case errors.Is(err, strconv.ErrSyntax), errors.Is(err, strconv.ErrRange):
			http.Error(w, "not a number", http.StatusBadRequest)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(value)
		}
	}
}

func (s *shopAPI) product(r *http.Request) (p Product, err error) {
	if p.ID, err = strconv.Atoi(r.PathValue("id")); err != nil {
		return p, err
	}
	key := "product:" + strconv.Itoa(p.ID)
	if cached, found, err := s.cache.Get(key); err != nil {
		return p, fmt.Errorf("cache: %w", err)
	} else if found && json.Unmarshal(cached, &p) == nil {
		p.Source = "cache"
		return p, nil
	}
	err = s.db.QueryRow(r.Context(), "SELECT name, cents FROM products WHERE id = $1", p.ID).Scan(&p.Name, &p.Cents)
	if err != nil {
		return p, fmt.Errorf("database: %w", err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return p, err
	}
	if err := s.cache.Set(key, text, cacheTime); err != nil {
		return p, fmt.Errorf("cache: %w", err)
	}
	p.Source = "db"
	return p, nil
}

func (s *shopAPI) search(r *http.Request) ([]Product, error) {
	rows, err := s.db.Query(r.Context(),
		"SELECT id, name, cents FROM products WHERE name LIKE '%' || $1 || '%' ORDER BY id LIMIT 20", r.FormValue("q"))
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Product, err error) {
		err = row.Scan(&p.ID, &p.Name, &p.Cents)
		return p, err
	})
}

func (s *shopAPI) check(r *http.Request) (e Evidence, err error) {
	e.Nonce = r.FormValue("nonce")
	var id int64
	if err := s.db.QueryRow(r.Context(), "INSERT INTO checks (nonce) VALUES ($1) RETURNING id", e.Nonce).Scan(&id); err != nil {
		return e, fmt.Errorf("database: %w", err)
	}
	err = s.db.QueryRow(r.Context(), "SELECT nonce, (SELECT count(*) FROM checks) FROM checks WHERE id = $1", id).Scan(&e.DB, &e.Rows)
	if err != nil {
		return e, fmt.Errorf("database: %w", err)
	}
	key := "check:" + strconv.FormatInt(id, 10)
	if err := s.cache.Set(key, []byte(e.Nonce), cacheTime); err != nil {
		return e, fmt.Errorf("cache: %w", err)
	}
	text, _, err := s.cache.Get(key)
	if err != nil {
		return e, fmt.Errorf("cache: %w", err)
	}
	e.Cache = string(text)
	return e, nil
}
