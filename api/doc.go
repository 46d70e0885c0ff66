// Package api takes declarations and serves what is declared and known: a REST
// server in the Kubernetes dialect over our own store, so that kubectl, GitOps
// tools and client-go work unchanged, and so does our own small client.
//
// The path of a request, and the files in that order:
//
//  1. server: listen on a unix socket and on TLS, bound everything;
//  2. authenticate: who is it (peer credentials, client certificate, session);
//  3. authorise: may this person do this to that kind in that namespace;
//  4. route: what does the path mean;
//  5. view, collection, namespace: one copy of all resources with their last
//     changes, kept by one watch of the store;
//  6. read, select, watch, table, form: the read side, answered from the view;
//  7. write, delete, patch, strategic, fields, batch, apply: prepare a change,
//     validate it with all faults at once, and commit it atomically;
//  8. sweep: delete what others leave behind when they go;
//  9. functions, questions: what is asked of the other rooms, which node wires in.
//
// Promises: a write is validated whole before anything is stored, and an answer
// of success means that the store has it. Updates are never lost: a write that
// was prepared on an old revision is refused or prepared again. A workload's
// identity number is given once and never again. Status is written by the rooms
// only. Every change is logged with who, what and from where.
//
// It never decides policy, never talks to an agent, and keeps no state that the
// store does not have.
package api
