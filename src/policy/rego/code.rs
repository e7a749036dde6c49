//! What the code of a rule names: functions, and where the kit would be mounted.

use regorus::unstable::{BUILTINS, Expr, Literal, Module, Query, Rule, RuleBody, RuleHead};

/// What a reference says: a variable, and what is taken of it. `None` stands for what is only known when it is evaluated.
type Path = Vec<Option<String>>;

/// What a module names.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// The functions that it calls, each with its line.
    calls: Vec<(Path, usize)>,
    /// What else it refers to.
    references: Vec<Path>,
}

/// What is to be looked at. The parser bounds how deep code is, but nothing here rests on that.
enum Piece<'m> {
    Expression(&'m Expr),
    Query(&'m Query),
}

impl Named {
    pub(super) fn of(module: &Module) -> Self {
        let mut named = Self::default();
        named.references.extend(module.imports.iter().map(|import| flat(&import.refr).0));
        let mut pieces = Vec::new();
        for rule in &module.policy {
            match &**rule {
                Rule::Spec { head, bodies, .. } => {
                    of_head(head, &mut pieces);
                    bodies.iter().for_each(|body| of_body(body, &mut pieces));
                }
                Rule::Default { value, .. } => pieces.push(Piece::Expression(value)),
            }
        }
        while let Some(piece) = pieces.pop() {
            match piece {
                Piece::Expression(expression) => named.expression(expression, &mut pieces),
                Piece::Query(query) => of_query(query, &mut pieces),
            }
        }
        named
    }

    fn expression<'m>(&mut self, expression: &'m Expr, pieces: &mut Vec<Piece<'m>>) {
        let mut push = |inner: &'m Expr| pieces.push(Piece::Expression(inner));
        match expression {
            Expr::String { .. } | Expr::RawString { .. } | Expr::Number { .. } | Expr::Bool { .. } | Expr::Null { .. } => {}
            Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().for_each(|item| push(item)),
            Expr::Object { fields, .. } => fields.iter().for_each(|(_, key, value)| {
                push(key);
                push(value);
            }),
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                push(term);
                pieces.push(Piece::Query(query));
            }
            Expr::ObjectCompr { key, value, query, .. } => {
                push(key);
                push(value);
                pieces.push(Piece::Query(query));
            }
            Expr::Call { span, fcn, params, .. } => {
                self.calls.push((flat(fcn).0, span.line as usize));
                params.iter().for_each(|parameter| push(parameter));
            }
            Expr::UnaryExpr { expr, .. } => push(expr),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                let (path, inner) = flat(expression);
                self.references.push(path);
                inner.into_iter().for_each(push);
            }
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => {
                push(lhs);
                push(rhs);
            }
            Expr::Membership { key, value, collection, .. } => {
                key.iter().for_each(|key| push(key));
                push(value);
                push(collection);
            }
        }
    }

    /// A function that it calls and that there is not, and its line.
    pub(super) fn unknown_function(&self, module: &Module) -> Option<(String, usize)> {
        let package = [data()].into_iter().chain(flat(&module.package.refr).0).collect::<Path>();
        let full = |path: &Path| package.iter().chain(path).cloned().collect::<Path>();
        let declared = module.policy.iter().filter_map(|rule| match &**rule {
            Rule::Spec { head: RuleHead::Func { refr, .. }, .. } => Some(full(&flat(refr).0)),
            Rule::Default { refr, args, .. } if !args.is_empty() => Some(full(&flat(refr).0)),
            _ => None,
        });
        let declared: Vec<Path> = declared.collect();
        // `import data.a.b` makes `b.f` of `data.a.b.f`; `import data.a.b as c`, `c.f`.
        let imported = |path: &Path| {
            let mut imports = module.imports.iter().map(|import| {
                let target = flat(&import.refr).0;
                let alias = import.r#as.as_ref().map(|alias| alias.text().to_owned()).or_else(|| target.last().cloned().flatten());
                (alias, target)
            });
            let (_, target) = imports.find(|(alias, _)| alias.is_some() && path.first() == Some(alias))?;
            Some(target.into_iter().chain(path.iter().skip(1).cloned()).collect::<Path>())
        };
        let is_known = |path: &Path| {
            let name = dotted(path);
            name == "print"
                || BUILTINS.contains_key(name.as_str())
                || declared.contains(path)
                || declared.contains(&full(path))
                || imported(path).is_some_and(|path| declared.contains(&path))
        };
        let unknown = self.calls.iter().filter(|(path, _)| !is_known(path)).min_by_key(|(_, line)| *line);
        unknown.map(|(path, line)| (dotted(path), *line))
    }

    /// Whether it could read what stands at a path of its input: that path, a part of it, or what only evaluating tells.
    pub(super) fn reads_input(&self, wanted: &[&str]) -> bool {
        self.references.iter().any(|path| match path.split_first() {
            Some((Some(root), rest)) if root == "input" => {
                rest.iter().zip(wanted).all(|(step, wanted)| step.as_deref().is_none_or(|step| step == *wanted))
            }
            _ => false,
        })
    }
}

fn data() -> Option<String> {
    Some("data".to_owned())
}

fn dotted(path: &Path) -> String {
    path.iter().map(|step| step.as_deref().unwrap_or("…")).collect::<Vec<_>>().join(".")
}

/// A reference as a path, and the expressions in it. What begins with no variable has none at its beginning.
fn flat(expression: &Expr) -> (Path, Vec<&Expr>) {
    let (mut path, mut inner) = (Path::new(), Vec::new());
    let mut at = expression;
    loop {
        match at {
            Expr::Var { span, .. } => {
                path.push(Some(span.text().to_owned()));
                break;
            }
            Expr::RefDot { refr, field, .. } => {
                path.push(Some(field.0.text().to_owned()));
                at = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                let literal = match &**index {
                    Expr::String { value, .. } | Expr::RawString { value, .. } => value.as_string().ok().map(ToString::to_string),
                    _ => None,
                };
                path.push(literal);
                inner.push(&**index);
                at = refr;
            }
            other => {
                path.push(None);
                inner.push(other);
                break;
            }
        }
    }
    path.reverse();
    (path, inner)
}

fn of_head<'m>(head: &'m RuleHead, pieces: &mut Vec<Piece<'m>>) {
    let (refr, key, assign) = match head {
        RuleHead::Compr { refr, assign, .. } | RuleHead::Func { refr, assign, .. } => (refr, None, assign.as_ref()),
        RuleHead::Set { refr, key, .. } => (refr, key.as_ref(), None),
    };
    pieces.extend(flat(refr).1.into_iter().map(Piece::Expression));
    pieces.extend(key.map(|key| Piece::Expression(key)));
    pieces.extend(assign.map(|assign| Piece::Expression(&assign.value)));
}

fn of_body<'m>(body: &'m RuleBody, pieces: &mut Vec<Piece<'m>>) {
    pieces.extend(body.assign.as_ref().map(|assign| Piece::Expression(&assign.value)));
    pieces.push(Piece::Query(&body.query));
}

fn of_query<'m>(query: &'m Query, pieces: &mut Vec<Piece<'m>>) {
    for statement in &query.stmts {
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { key, value, collection, .. } => {
                pieces.extend(key.iter().chain([value, collection]).map(|inner| Piece::Expression(inner)));
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => pieces.push(Piece::Expression(expr)),
            Literal::Every { domain, query, .. } => {
                pieces.push(Piece::Expression(domain));
                pieces.push(Piece::Query(query));
            }
        }
        pieces.extend(statement.with_mods.iter().map(|modifier| Piece::Expression(&modifier.r#as)));
    }
}
